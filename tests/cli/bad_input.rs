//! Images that are damaged or made to do harm: refused, with nothing left behind.

use serde_json::json;

use crate::support::{Layout, Voidrun, config, digest, gzip, layer, noise, tagged, tar};
use crate::two_layers;

/// Nothing of a failed pull may be seen as an image or a blob.
#[track_caller]
fn nothing_is_there(voidrun: &Voidrun) {
    assert_eq!(voidrun.names(), Vec::<String>::new());
    for dir in ["refs", "images"] {
        assert_eq!(voidrun.files(dir), Vec::<String>::new(), "{dir}");
    }
}

type Damage = fn(&mut Vec<u8>);

#[test]
fn damaged_blobs_are_refused() {
    let layers = two_layers();
    let position_of = |layout: &Layout, bytes: &[u8]| {
        let name = format!("blobs/sha256/{}", &digest(bytes)[7..]);
        layout.files.iter().position(|(file, _)| *file == name).unwrap()
    };
    let damages: [(&str, Damage); 3] = [
        ("its digest is", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("bytes where its descriptor states", |bytes| bytes.push(0)),
        ("bytes where its descriptor states", |bytes| bytes.truncate(bytes.len() - 1)),
    ];
    for (message, damage) in damages {
        for blob in [gzip(&layers[1]), config(&layers, "amd64")] {
            let mut layout = Layout::of(&layers);
            let position = position_of(&layout, &blob);
            damage(&mut layout.files[position].1);
            let voidrun = Voidrun::new();
            let source = voidrun.layout("bad", &layout);
            voidrun.run(&["images", "pull", &source]).fails(1, &[message, &digest(&blob)]);
            nothing_is_there(&voidrun);
            let file = voidrun.file("bad.tar", &layout.tar());
            voidrun.run(&["images", "import", "bad", &file]).fails(1, &[message, &digest(&blob)]);
            nothing_is_there(&voidrun);
            let kept = voidrun.files("blobs/sha256");
            assert!(!kept.contains(&digest(&blob)[7..].to_owned()), "{kept:?}");
            assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
        }
    }
}

/// What they expand to may be right all the same: the conversion, which reads a layout in place, finds nothing wrong.
#[test]
fn a_layer_of_other_bytes_with_the_right_content_is_refused() {
    let layers = two_layers();
    let mut layout = Layout::of(&layers);
    let blob = gzip(&layers[1]);
    let name = format!("blobs/sha256/{}", &digest(&blob)[7..]);
    let (_, bytes) = layout.files.iter_mut().find(|(file, _)| *file == name).unwrap();
    // The time of compression in gzip's header (RFC 1952, MTIME).
    bytes[4] ^= 1;
    let voidrun = Voidrun::new();
    let source = voidrun.layout("bad", &layout);
    voidrun.run(&["images", "pull", &source]).fails(1, &["its digest is", &digest(&blob)]);
    nothing_is_there(&voidrun);
}

#[test]
fn digests_that_are_paths_are_refused() {
    for evil in ["sha256:../../../../etc/passwd", "sha256:..", "../x", "sha512:00", &"sha256:".repeat(9)] {
        let mut layout = Layout::default();
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": evil, "size": 1 },
            "layers": [],
        });
        let manifest = layout.document("application/vnd.oci.image.manifest.v1+json", &manifest);
        layout.manifests = vec![manifest];
        let voidrun = Voidrun::new();
        voidrun.run(&["images", "pull", &voidrun.layout("evil", &layout)]).fails(1, &["malformed"]);
        layout.manifests = vec![
            json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": evil, "size": 1 }),
        ];
        voidrun.run(&["images", "pull", &voidrun.layout("evil", &layout)]).fails(1, &["malformed"]);
        nothing_is_there(&voidrun);
    }
}

#[test]
fn a_wrong_diff_id_is_refused() {
    let mut layout = Layout::default();
    let right = two_layers();
    let wrong = vec![right[0].clone(), layer(&[("another", b"file")])];
    let manifest = layout.image(&right, "amd64");
    let config_of = |layers: &[Vec<u8>]| config(layers, "amd64");
    let (old, new) = (config_of(&right), config_of(&wrong));
    assert_eq!(old.len(), new.len());
    // The manifest with another configuration.
    let name = format!("blobs/sha256/{}", &manifest["digest"].as_str().unwrap()[7..]);
    let text = layout.files.iter().find(|(file, _)| *file == name).unwrap().1.clone();
    let text = String::from_utf8(text).unwrap().replace(&digest(&old), &digest(&new));
    layout.blob(new);
    let manifest =
        layout.document("application/vnd.oci.image.manifest.v1+json", &serde_json::from_str(&text).unwrap());
    layout.manifests = vec![manifest];
    let voidrun = Voidrun::new();
    voidrun
        .run(&["images", "pull", &voidrun.layout("wrong", &layout)])
        .fails(1, &["the image's configuration says"]);
    nothing_is_there(&voidrun);
    assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
}

#[test]
fn truncated_archives_are_refused() {
    let whole = Layout::of(&two_layers()).tar();
    // The last two blocks are the end of the archive; what lies before is needed.
    let end = whole.len() - 1024;
    let mut lengths: Vec<usize> = (0..end).step_by(509).collect();
    lengths.push(end - 513);
    for form in [|bytes: &[u8]| bytes.to_vec(), gzip] {
        let voidrun = Voidrun::new();
        for &length in lengths.iter().step_by(3) {
            let ran = voidrun.run_with_stdin(&["images", "import", "cut"], &form(&whole[..length]));
            ran.fails(1, &["standard input"]);
        }
        nothing_is_there(&voidrun);
        assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
        assert_eq!(voidrun.files("blobs/sha256"), Vec::<String>::new());
    }
    let voidrun = Voidrun::new();
    let packed = gzip(&whole);
    voidrun
        .run_with_stdin(&["images", "import", "cut"], &packed[..packed.len() / 2])
        .fails(1, &["standard input"]);
}

#[test]
fn not_an_image() {
    let voidrun = Voidrun::new();
    let empty = voidrun.file("empty", b"");
    let noise = voidrun.file("noise", &noise(10_000, 7));
    let other = voidrun.file("other.tar", &tar(&[("readme", b"hello".to_vec())]));
    voidrun.run(&["images", "import", "x", &empty]).fails(1, &["is not an OCI layout", "docker save"]);
    voidrun.run(&["images", "import", "x", &noise]).fails(1, &["damaged", "no tar header"]);
    voidrun.run(&["images", "import", "x", &other]).fails(1, &["is not an OCI layout", "docker save"]);
    voidrun
        .run(&["images", "import", "x", "/nonexistent/x.tar"])
        .fails(1, &["/nonexistent/x.tar", "No such file"]);
    voidrun.run(&["images", "pull", "oci:/nonexistent"]).fails(1, &["/nonexistent"]);
    let dir = voidrun.path("");
    voidrun
        .run(&["images", "pull", &format!("oci:{}", dir.display()), "--name", "x"])
        .fails(1, &["oci-layout"]);
}

#[test]
fn more_entries_than_any_image_has() {
    let mut bytes = Vec::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_cksum();
    for _ in 0..100_001 {
        bytes.extend_from_slice(header.as_bytes());
    }
    let voidrun = Voidrun::new();
    voidrun.run_with_stdin(&["images", "import", "many"], &bytes).fails(1, &["more than 100000 entries"]);
}

#[test]
fn what_an_image_says_is_not_obeyed_by_the_terminal() {
    let voidrun = Voidrun::new();
    let mut layout = Layout::default();
    for i in 0..30 {
        let manifest = layout.image(&[layer(&[("x", &[i])])], "amd64");
        layout.manifests.push(tagged(manifest, &format!("v{i}\u{1b}]0;title\u{7}\u{9b}2J")));
    }
    let ran = voidrun.run(&["images", "pull", &voidrun.layout("tool", &layout)]);
    assert!(!ran.stderr.contains(|c: char| c.is_control() && c != '\n'), "{ran:?}");
    ran.fails(1, &["several images", "and 10 more"]);
    let mut layout = Layout::default();
    let manifest = layout.image(&two_layers(), "\u{1b}[2J");
    layout.manifests.push(manifest);
    let ran = voidrun.run(&["images", "pull", &voidrun.layout("other", &layout)]);
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
    ran.fails(1, &["for linux/\u{fffd}[2J"]);
}
