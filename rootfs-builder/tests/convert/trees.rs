//! What layers become, one rule a test. The oracle tests of the workspace compare whole images.

use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::layer::{
    LayerBuilder, MIB, allocated, assert_clean, blob, content, convert_blobs, convert_layers, debugfs,
    options,
};

#[test]
fn an_image_of_nothing() {
    for layers in [vec![], vec![LayerBuilder::new().build()]] {
        let (image, summary) = convert_layers(&layers, &options()).unwrap();
        assert_clean(image.path());
        assert_eq!((summary.size_bytes, summary.inodes), (64 * MIB, 2));
        assert_eq!(image.as_file().metadata().unwrap().len(), 64 * MIB);
        assert!(allocated(image.as_file()) < MIB, "sparse");
    }
}

#[test]
fn without_a_journal() {
    let options = rootfs_builder::convert::Options { journal: false, ..options() };
    let (image, _) = convert_layers(&[LayerBuilder::new().file("a", b"hello").build()], &options).unwrap();
    assert_clean(image.path());
    assert!(!debugfs(image.path(), "features").contains("has_journal"));
    assert_eq!(content(image.path(), "/a"), b"hello");
}

#[test]
fn the_same_layers_are_the_same_bytes_however_compressed() {
    let mut layer = LayerBuilder::new();
    for i in 0..2000 {
        layer.file(&format!("d/{i}-{}", "n".repeat(i % 80)), &vec![i as u8; i]);
    }
    let layer = layer.build();
    let zstd = zstd::encode_all(&layer[..], 3).unwrap();
    let (one, _) = convert_blobs(vec![blob(&layer, &layer)], &options()).unwrap();
    let (two, _) = convert_blobs(vec![blob(&zstd, &layer)], &options()).unwrap();
    assert!(std::fs::read(one.path()).unwrap() == std::fs::read(two.path()).unwrap());
    assert_clean(one.path());
}

#[test]
fn what_upper_layers_replace_leaves_no_trace() {
    let secret = b"do not ship this".repeat(1000);
    let lower =
        LayerBuilder::new().file("key", &secret).file("old/key", &secret).file("kept", b"kept").build();
    let upper = LayerBuilder::new().file("key", b"public").file(".wh.old", b"").build();
    let (image, _) = convert_layers(&[lower, upper], &options()).unwrap();
    assert_clean(image.path());
    assert_eq!(content(image.path(), "/key"), b"public");
    assert_eq!(content(image.path(), "/kept"), b"kept");
    let bytes = std::fs::read(image.path()).unwrap();
    assert!(!bytes.windows(secret.len()).any(|window| window == secret));
}

#[test]
fn duplicate_entries_end_as_the_last() {
    let mut layer = LayerBuilder::new();
    layer.file("a", b"first").dir("a").file("a", b"second").file("d/x", b"").dir("d").file("d/x", b"third");
    let (image, summary) = convert_layers(&[layer.build()], &options()).unwrap();
    assert_clean(image.path());
    assert_eq!(content(image.path(), "/a"), b"second");
    assert_eq!(content(image.path(), "/d/x"), b"third");
    assert_eq!(summary.inodes, 5);
}

#[test]
fn sparse_files_with_many_extents() {
    // 3,000 single blocks with holes between them: leaves and an index above them.
    let count = 3000_u64;
    let map: Vec<String> = (0..count).map(|i| format!("{},{}", i * 12288 + 100, 50)).collect();
    let size = (count * 12288).to_string();
    let data: Vec<u8> = (0..count).flat_map(|i| [i as u8; 50]).collect();
    let mut layer = LayerBuilder::new();
    layer.pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.join(",").as_bytes())]);
    layer.file("sparse", &data);
    let (image, _) = convert_layers(&[layer.build()], &options()).unwrap();
    assert_clean(image.path());
    let bytes = content(image.path(), "/sparse");
    assert_eq!(bytes.len() as u64, count * 12288);
    for (i, part) in bytes.chunks(12288).enumerate() {
        assert!(part[..100].iter().chain(&part[150..]).all(|&byte| byte == 0));
        assert_eq!(part[100..150], [i as u8; 50]);
    }
}

#[test]
fn a_file_that_needs_more_extents_than_an_inode_holds() {
    // 600 MiB in five extents; the zeros are never stored.
    let size = 600 * MIB;
    let mut layer = tempfile::tempfile().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("big").unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    layer.write_all_at(header.as_bytes(), 0).unwrap();
    layer.write_all_at(b"end", 512 + size - 3).unwrap();
    layer.set_len(512 + size + 1024).unwrap();
    // In pieces: it is a large layer.
    let mut hash = Sha256::new();
    let mut piece = vec![0; MIB as usize];
    loop {
        let count = layer.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
    }
    layer.rewind().unwrap();
    let mut ready = blob(b"", b"");
    ready.blob = layer;
    ready.descriptor.size = 512 + size + 1024;
    ready.diff_id = rootfs_builder::image::Digest::from_hash(hash);
    let options = rootfs_builder::convert::Options { size: Some(1 << 30), ..options() };
    let (image, _) = convert_blobs(vec![ready], &options).unwrap();
    assert_clean(image.path());
    assert!(allocated(image.as_file()) < 2 * MIB);
    let extents = debugfs(image.path(), "dump_extents -l /big");
    assert_eq!(
        extents.lines().filter(|line| line.contains(" 0 - ") || line.contains(" - ")).count(),
        5,
        "{extents}"
    );
}

#[test]
fn special_files_and_long_links() {
    let long = "t/".repeat(45);
    let mut layer = LayerBuilder::new();
    layer.entry(EntryType::Fifo, "fifo", "", (0, 0), b"");
    layer.entry(EntryType::Char, "null", "", (1, 3), b"");
    layer.entry(EntryType::Block, "big", "", (259, 70_000), b"");
    layer.symlink("short", "target").symlink("long", &long);
    let (image, _) = convert_layers(&[layer.build()], &options()).unwrap();
    assert_clean(image.path());
    let stat = |path: &str| debugfs(image.path(), &format!("stat {path}"));
    assert!(stat("/fifo").contains("Type: FIFO"));
    assert!(stat("/null").contains("Device major/minor number: 01:03"), "{}", stat("/null"));
    assert!(stat("/big").contains("Device major/minor number: 259:70000"), "{}", stat("/big"));
    assert!(stat("/short").contains("Fast link dest: \"target\""));
    assert_eq!(content(image.path(), "/long"), long.as_bytes());
}

#[test]
fn attributes_in_the_inode_and_in_a_block() {
    let mut layer = LayerBuilder::new();
    layer.pax(&[("SCHILY.xattr.user.small", b"a\n\0b")]).file("small", b"");
    let large = vec![b'v'; 3000];
    layer.pax(&[
        ("SCHILY.xattr.user.large", &large),
        ("SCHILY.xattr.security.capability", b"cap"),
        ("SCHILY.xattr.com.apple.x", b"1"),
    ]);
    layer.file("large", b"x");
    let (image, _) = convert_layers(&[layer.build()], &options()).unwrap();
    assert_clean(image.path());
    let listed = debugfs(image.path(), "ea_list /large");
    assert!(listed.contains("user.large (3000)"), "{listed}");
    assert!(listed.contains("security.capability (3)"), "{listed}");
    assert!(!listed.contains("apple"), "{listed}");
    assert!(debugfs(image.path(), "ea_list /small").contains("user.small (4)"));
}

#[test]
fn acls_as_linux_keeps_them() {
    let none = u32::MAX.to_le_bytes();
    let acl: Vec<u8> = [2, 0, 0, 0]
        .into_iter()
        .chain(
            [(1, 7), (4, 5), (0x20, 0)]
                .into_iter()
                .flat_map(|(tag, bits): (u8, u8)| [&[tag, 0, bits, 0][..], &none].concat()),
        )
        .collect();
    let mut layer = LayerBuilder::new();
    layer.pax(&[
        ("SCHILY.xattr.system.posix_acl_access", &acl),
        ("SCHILY.xattr.system.posix_acl_default", &acl),
    ]);
    layer.dir("d");
    let (image, _) = convert_layers(&[layer.build()], &options()).unwrap();
    assert_clean(image.path());
    let listed = debugfs(image.path(), "ea_list /d");
    assert!(listed.contains("posix_acl_default") && !listed.contains("posix_acl_access"), "{listed}");
}

#[test]
fn of_two_attributes_of_one_name_the_last() {
    let mut layer = LayerBuilder::new();
    layer.pax(&[
        ("SCHILY.xattr.user.a", b"first"),
        ("SCHILY.xattr.user.b", b"b"),
        ("SCHILY.xattr.user.a", b"last"),
    ]);
    layer.file("f", b"");
    let (image, _) = convert_layers(&[layer.build()], &options()).unwrap();
    assert_clean(image.path());
    let listed = debugfs(image.path(), "ea_list /f");
    assert!(listed.contains("user.a (4) = \"last\"") && listed.contains("user.b (1)"), "{listed}");
}

#[test]
fn sizes_that_are_no_round_number() {
    let layer = LayerBuilder::new().file("a", b"hello").build();
    for size in [20_000_000, 128 * MIB, 128 * MIB + 4096, 128 * MIB + 1, 1024 * MIB + 1] {
        let options = rootfs_builder::convert::Options { size: Some(size), ..options() };
        let (image, summary) = convert_layers(std::slice::from_ref(&layer), &options).unwrap();
        assert_eq!(summary.size_bytes, size);
        assert_clean(image.path());
        assert_eq!(content(image.path(), "/a"), b"hello");
    }
}
