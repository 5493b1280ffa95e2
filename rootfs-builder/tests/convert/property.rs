//! Any layers at all: refused with an error, or converted into a file system that e2fsck finds nothing wrong with.

use proptest::prelude::*;
use tar::EntryType;

use super::layer::{LayerBuilder, assert_clean, convert_layers, options};

#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    path: String,
    other: String,
    length: usize,
    number: u32,
}

fn a_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "lib", "lost+found", "x.y"]).prop_map(str::to_owned),
        1 => "[a-z]{1,40}",
        1 => prop::sample::select(vec![".wh.a", ".wh.b", ".wh..wh..opq", ".wh.lib", ".", ".."]).prop_map(str::to_owned),
    ];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/").chars().take(99).collect())
}

fn a_step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![Just(0), 1..5000_usize, Just(4096), Just(8192), 100_000..200_000_usize];
    (0..12_u8, a_path(), a_path(), length, any::<u32>())
        .prop_map(|(kind, path, other, length, number)| Step { kind, path, other, length, number })
}

fn apply(layer: &mut LayerBuilder, step: &Step) {
    let Step { kind, path, other, length, number } = step;
    match kind {
        0..=3 => layer.file(path, &vec![*number as u8; *length]),
        4 => layer.dir(path),
        5 => layer.symlink(path, other),
        6 | 7 => layer.hard_link(path, other),
        8 => layer.entry(EntryType::Char, path, "", (number >> 21, number & 0x1f_ffff), b""),
        9 => layer.entry(EntryType::Fifo, path, "", (0, 0), b""),
        10 => {
            let value = vec![*number as u8; length % 5000];
            layer.pax(&[("SCHILY.xattr.user.one", &value), ("SCHILY.xattr.security.two", b"2")]);
            layer.file(path, b"with attributes")
        }
        _ => {
            // Two pieces of data, the second beyond a hole of any size.
            let offset = 10 + u64::from(*number) * 7;
            let (size, map) = ((offset + 3).to_string(), format!("0,2,{offset},3"));
            layer.pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())]);
            layer.file(path, b"12345")
        }
    };
}

fn build(steps: &[&Step]) -> Vec<u8> {
    let mut layer = LayerBuilder::new();
    for step in steps {
        apply(&mut layer, step);
    }
    layer.build()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_layers(layers in prop::collection::vec(prop::collection::vec(a_step(), 0..25), 1..4)) {
        let mut converted: Vec<Vec<u8>> = Vec::new();
        for steps in &layers {
            // One entry that cannot be would hide all the others: it is tried, and left out.
            let mut kept = Vec::new();
            converted.push(Vec::new());
            for step in steps {
                kept.push(step);
                let layer = build(&kept);
                let before = std::mem::replace(converted.last_mut().unwrap(), layer);
                if convert_layers(&converted, &options()).is_err() {
                    kept.pop();
                    *converted.last_mut().unwrap() = before;
                }
            }
            *converted.last_mut().unwrap() = build(&kept);
        }
        let (image, _) = convert_layers(&converted, &options()).unwrap();
        assert_clean(image.path());
    }
}
