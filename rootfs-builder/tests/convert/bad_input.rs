//! What a hostile image can hold: each refused with an error that says what it is.

use std::error::Error;

use rootfs_builder::convert::{ConvertError, Limits, Options};
use rootfs_builder::ext4::Ext4Error;
use rootfs_builder::image::Digest;
use rootfs_builder::layer::TarError;
use rootfs_builder::tree::TreeError;

use super::layer::{LayerBuilder, blob, convert_blobs, convert_layers, options};

fn error_of(layer: &[u8]) -> ConvertError {
    convert_layers(&[layer.to_vec()], &options()).expect_err("the layer is refused")
}

/// The whole chain, as a user reads it.
fn text(error: &ConvertError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn tree_error(layer: &mut LayerBuilder) -> TreeError {
    match error_of(&layer.build()) {
        ConvertError::Tree { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

fn entry_error(layer: &mut LayerBuilder) -> Ext4Error {
    match error_of(&layer.build()) {
        ConvertError::Entry { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_out_of_the_root() {
    let mut layer = LayerBuilder::new();
    assert_eq!(tree_error(layer.file("../etc/passwd", b"x")), TreeError::Parent("../etc/passwd".into()));
    assert_eq!(tree_error(layer.file("a/../../b", b"x")), TreeError::Parent("a/../../b".into()));
    assert_eq!(tree_error(layer.file("/etc/passwd", b"x")), TreeError::Absolute("/etc/passwd".into()));
    assert_eq!(
        tree_error(layer.hard_link("a", "../../etc/shadow")),
        TreeError::Parent("../../etc/shadow".into())
    );
    assert_eq!(tree_error(layer.file(".wh...", b"")), TreeError::EmptyWhiteout(".wh...".into()));
    assert_eq!(tree_error(layer.file(".", b"")), TreeError::RootNotDirectory);
}

#[test]
fn links_to_nowhere() {
    let mut layer = LayerBuilder::new();
    layer.symlink("a", "b").symlink("b", "/a").file("a/c", b"x");
    assert_eq!(tree_error(&mut layer), TreeError::SymlinkLoop("a".into()));
    layer.symlink("self", "self/self").file("self/x", b"");
    assert_eq!(tree_error(&mut layer), TreeError::SymlinkLoop("self".into()));
    layer.hard_link("a", "b");
    assert_eq!(tree_error(&mut layer), TreeError::NoTarget { path: "a".into(), target: "b".into() });
    layer.dir("d").hard_link("a", "d");
    assert_eq!(tree_error(&mut layer), TreeError::LinkToDirectory { path: "a".into(), target: "d".into() });
}

#[test]
fn more_than_ext4_holds() {
    use tar::EntryType;
    let mut layer = LayerBuilder::new();
    layer.pax(&[("SCHILY.xattr.user.big", &[7; 5000])]).file("a", b"");
    assert!(matches!(entry_error(&mut layer), Ext4Error::XattrsTooLarge(5003)));
    layer.pax(&[("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0\x01")]).file("a", b"");
    assert!(matches!(entry_error(&mut layer), Ext4Error::InvalidAcl(_)));
    layer.entry(EntryType::Char, "tty", "", (0x1000, 1), b"");
    assert!(matches!(entry_error(&mut layer), Ext4Error::Device(0x1000, 1)));
    layer.file("a", b"");
    for i in 0..65_000 {
        layer.hard_link(&format!("b{i}"), "a");
    }
    let error = error_of(&layer.build());
    assert!(matches!(error, ConvertError::Ext4(Ext4Error::TooManyLinks(_))), "{error:?}");
    let claim =
        layer.pax(&[("GNU.sparse.size", b"17592186044416"), ("GNU.sparse.map", b"0,0")]).file("a", b"");
    assert!(matches!(entry_error(claim), Ext4Error::FileTooLarge(17_592_186_044_416)));
}

#[test]
fn truncated_anywhere() {
    let mut layer = LayerBuilder::new();
    let whole = layer.dir("d").file("d/a", &[1; 3000]).file("d/b", &[2; 10]).symlink("d/c", "a").build();
    for length in 0..whole.len() - 1 {
        // Every cut within a block is as good as any other.
        if length % 512 > 1 {
            continue;
        }
        let result = convert_blobs(vec![blob(&whole[..length], &whole)], &options());
        let error = result.err().unwrap_or_else(|| panic!("cut at {length}"));
        // Between entries, or within padding, only the digest can tell.
        assert!(
            matches!(
                error,
                ConvertError::Tar { source: TarError::Truncated { .. }, .. } | ConvertError::DiffId { .. }
            ),
            "cut at {length}: {error:?}"
        );
    }
}

#[test]
fn damaged_compression() {
    let whole = LayerBuilder::new().file("a", &vec![1; 100_000]).build();
    let gzip = {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&whole).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(&whole[..], 3).unwrap();
    for compressed in [gzip, zstd] {
        convert_blobs(vec![blob(&compressed, &whole)], &options()).expect("the whole layer converts");
        let mut damaged = compressed.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        for bad in [&compressed[..compressed.len() / 2], &damaged] {
            let error = convert_blobs(vec![blob(bad, &whole)], &options()).unwrap_err();
            assert!(matches!(error, ConvertError::Tar { .. } | ConvertError::DiffId { .. }), "{error:?}");
        }
    }
}

#[test]
fn wrong_content() {
    let layer = LayerBuilder::new().file("a", b"x").build();
    let error = convert_blobs(vec![blob(&layer, b"something else")], &options()).unwrap_err();
    let ConvertError::DiffId { expected, actual, .. } = error else { panic!("{error:?}") };
    assert_eq!((expected, actual), (Digest::of(b"something else"), Digest::of(&layer)));

    let mut attestation = blob(b"{}", b"{}");
    attestation.descriptor.media_type = "application/vnd.in-toto+json".into();
    let error = convert_blobs(vec![attestation], &options()).unwrap_err();
    assert!(text(&error).contains("application/vnd.in-toto+json"), "{error}");

    let error = error_of(&[7; 2048]);
    assert!(matches!(error, ConvertError::Tar { source: TarError::Checksum { at: 0 }, .. }), "{error:?}");
    let mut unknown = LayerBuilder::new();
    unknown.entry(tar::EntryType::new(b'V'), "volume", "", (0, 0), b"");
    assert!(text(&error_of(&unknown.build())).contains("unknown type 'V'"));
}

#[test]
fn a_layer_that_expands_without_end() {
    // 64 MiB of zeros from 2 KiB: the limit stops it on the way, in proportion to the blob.
    let limits = Limits { free_bytes: 1 << 20, ratio: 100, ..Limits::default() };
    let bomb = LayerBuilder::new().file("zeros", &vec![0; 64 << 20]).build();
    let zstd = zstd::encode_all(&bomb[..], 19).unwrap();
    let options = Options { limits, ..options() };
    let error = convert_blobs(vec![blob(&zstd, &bomb)], &options).unwrap_err();
    let ConvertError::Expansion { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.max_bytes, (1 << 20) + 100 * zstd.len() as u64);
    assert!(text(&error).contains("bomb"));

    // 10 GiB claimed by a header in 1 MiB, which then ends.
    let mut header = tar::Header::new_gnu();
    header.set_path("claim").unwrap();
    header.set_size(10 << 30);
    header.set_cksum();
    let claim = [header.as_bytes().as_slice(), &vec![1; 1 << 20]].concat();
    let error = error_of(&claim);
    assert!(matches!(error, ConvertError::Tar { source: TarError::Truncated { .. }, .. }), "{error:?}");
}

#[test]
fn more_entries_than_the_cap() {
    let mut layer = LayerBuilder::new();
    for i in 0..100 {
        layer.file(&format!("f{i}"), b"");
    }
    let layer = layer.build();
    let limited = |entries, name_bytes| {
        let limits = Limits { entries, name_bytes, ..Limits::default() };
        convert_layers(std::slice::from_ref(&layer), &Options { limits, ..options() })
    };
    limited(100, 1000).expect("as many as the cap");
    let error = limited(99, 1000).unwrap_err();
    assert!(matches!(error, ConvertError::Tree { source: TreeError::TooManyEntries { limit: 99, .. }, .. }));
    let error = limited(100, 100).unwrap_err();
    assert!(matches!(error, ConvertError::Tree { source: TreeError::TooManyNames { limit: 100, .. }, .. }));
}

#[test]
fn a_size_that_is_too_small() {
    let layer = LayerBuilder::new().file("a", &vec![1; 20 << 20]).build();
    let with =
        |size| convert_layers(std::slice::from_ref(&layer), &Options { size: Some(size), ..options() });
    let error = with(16 << 20).unwrap_err();
    let ConvertError::Ext4(Ext4Error::SizeTooSmall { asked, needed }) = error else { panic!("{error:?}") };
    assert_eq!(asked, 16 << 20);
    let (image, summary) = with(needed).expect("what is said to be needed is enough");
    assert_eq!(summary.size_bytes, needed);
    super::layer::assert_clean(image.path());
}

#[test]
fn layers_that_do_not_come() {
    let output = tempfile::tempfile().unwrap();
    let layer = LayerBuilder::new().file("a", b"x").build();
    let one = std::iter::once(Ok(blob(&layer, &layer)));
    let error = rootfs_builder::convert::convert(one, 2, &output, &options(), &|_| {}).unwrap_err();
    assert!(matches!(error, ConvertError::LayerMissing { number: 2, count: 2, source: None }), "{error:?}");
}

#[test]
fn a_bad_layer_is_told_before_the_next_has_come() {
    let output = tempfile::tempfile().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    send.send(Ok(blob(&[7; 2048], b""))).unwrap();
    // The sender stays open: the second layer never comes, and never ends.
    let error =
        rootfs_builder::convert::convert(receive.into_iter(), 2, &output, &options(), &|_| {}).unwrap_err();
    assert!(matches!(error, ConvertError::Tar { source: TarError::Checksum { at: 0 }, .. }), "{error:?}");
    drop(send);
}

#[test]
fn a_file_system_that_is_too_large() {
    let layer = LayerBuilder::new().file("a", b"x").build();
    for size in [u64::MAX, 16 << 40] {
        let error = convert_layers(std::slice::from_ref(&layer), &Options { size: Some(size), ..options() });
        let error = error.unwrap_err();
        assert!(
            matches!(error, ConvertError::Ext4(Ext4Error::SizeTooLarge(asked)) if asked == size),
            "{error:?}"
        );
    }
}

#[test]
fn names_that_belong_to_others() {
    let mut layer = LayerBuilder::new();
    assert_eq!(tree_error(layer.file("lost+found", b"x")), TreeError::LostAndFound);
    assert_eq!(tree_error(layer.file(".wh.x/y", b"x")), TreeError::BelowWhiteout(".wh.x/y".into()));
}

#[test]
fn symbolic_links_that_cost_more_than_they_are() {
    let mut layer = LayerBuilder::new();
    layer.dir("d");
    for i in 0..39 {
        let target = "d/../".repeat(800) + &format!("l{}", i + 1);
        layer.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{i}"), "");
    }
    layer.dir("l39");
    for i in 0..100 {
        layer.file(&format!("l0/.wh.{i}"), b"");
    }
    let limits = Limits { entries: 1000, ..Limits::default() };
    let error = convert_layers(&[layer.build()], &Options { limits, ..options() }).unwrap_err();
    assert!(matches!(error, ConvertError::Tree { source: TreeError::TooManyDetours(_), .. }), "{error:?}");
}

#[test]
fn more_pieces_of_sparse_files_than_entries() {
    let map: Vec<String> = (0..200).map(|i| format!("{},1", i * 8192)).collect();
    let mut layer = LayerBuilder::new();
    layer.pax(&[("GNU.sparse.size", b"9999999"), ("GNU.sparse.map", map.join(",").as_bytes())]);
    layer.file("a", &[1; 200]);
    let limits = Limits { entries: 100, ..Limits::default() };
    let error = convert_layers(&[layer.build()], &Options { limits, ..options() }).unwrap_err();
    assert!(matches!(error, ConvertError::TooManyRegions { limit: 100, .. }), "{error:?}");
}
