//! Any layers to ext4: an error, or a file system whose superblock counts what its descriptors count.
//!
//! The input is a list of layers, each a list of blocks and data, so that the fuzzer need not find out how tar
//! pads; checksums of headers are not verified under fuzzing.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use rootfs_builder::convert::{ConvertError, Layer, Limits, Options, convert};
use rootfs_builder::image::{Descriptor, Digest};

#[derive(arbitrary::Arbitrary, Debug)]
struct Entry {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    pax: Vec<(Key, Vec<u8>)>,
    numbers: [u32; 5],
    data: Vec<u8>,
}

#[derive(arbitrary::Arbitrary, Debug)]
enum Key {
    Path,
    Link,
    Size,
    Mtime,
    SparseSize,
    SparseMap,
    SparseMajor,
    Xattr,
    Capability,
    Acl,
}

fuzz_target!(|layers: Vec<Vec<Entry>>| {
    let layers: Vec<Layer> = layers.iter().take(4).map(|entries| layer(entries)).collect();
    let count = layers.len();
    let output = memory_file(&[]);
    let limits = Limits { entries: 1000, name_bytes: 100_000, free_bytes: 16 << 20, ratio: 10 };
    let options = Options { size: Some(64 << 20), journal: count % 2 == 0, uuid: [3; 16], limits };
    match convert(layers.into_iter().map(Ok), count, &output, &options, &|_| {}) {
        Ok(summary) => {
            assert_eq!(summary.size_bytes, 64 << 20);
            check(&output);
        }
        Err(ConvertError::DiffId { .. }) => unreachable!("the digests are right"),
        Err(_) => {}
    }
});

/// Sums of the descriptors against the superblock.
fn check(image: &File) {
    let mut superblock = [0; 1024];
    image.read_exact_at(&mut superblock, 1024).unwrap();
    let field = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
    let (blocks, free_blocks, free_inodes) = (field(4), field(0xc), field(0x10));
    assert_eq!(u64::from(blocks) * 4096, 64 << 20);
    let mut descriptor = [0; 32];
    image.read_exact_at(&mut descriptor, 4096).unwrap();
    let field = |at: usize| u32::from(u16::from_le_bytes([descriptor[at], descriptor[at + 1]]));
    // 64 MiB are a single group.
    assert_eq!((free_blocks, free_inodes), (field(0xc), field(0xe)));
}

fn layer(entries: &[Entry]) -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let records: Vec<(&str, &[u8])> = entry
            .pax
            .iter()
            .map(|(key, value)| {
                let key = match key {
                    Key::Path => "path",
                    Key::Link => "linkpath",
                    Key::Size => "size",
                    Key::Mtime => "mtime",
                    Key::SparseSize => "GNU.sparse.size",
                    Key::SparseMap => "GNU.sparse.map",
                    Key::SparseMajor => "GNU.sparse.major",
                    Key::Xattr => "SCHILY.xattr.user.x",
                    Key::Capability => "SCHILY.xattr.security.capability",
                    Key::Acl => "SCHILY.xattr.system.posix_acl_access",
                };
                (key, value.as_slice())
            })
            .collect();
        tar.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_gnu();
        let [mode, uid, gid, major, minor] = entry.numbers;
        header.set_mode(mode & 0o7777);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_device_major(major & 0x1fff).unwrap();
        header.set_device_minor(minor & 0x1f_ffff).unwrap();
        header.set_mtime(u64::from(minor) << 4);
        header.set_size(entry.data.len() as u64);
        header.set_entry_type(tar::EntryType::new(b'0' + entry.kind % 8));
        let bytes = header.as_mut_bytes();
        for (at, text) in [(0, &entry.path), (157, &entry.link)] {
            let length = text.len().min(100);
            bytes[at..at + length].copy_from_slice(&text[..length]);
        }
        header.set_cksum();
        tar.append(&header, &entry.data[..]).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let digest = Digest::of(&bytes);
    let media_type = "application/vnd.oci.image.layer.v1.tar".into();
    let descriptor = Descriptor { digest, size: bytes.len() as u64, media_type };
    Layer { blob: memory_file(&bytes), descriptor, diff_id: digest }
}

fn memory_file(bytes: &[u8]) -> File {
    let mut file = File::from(rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}
