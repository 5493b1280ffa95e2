//! Any layers to ext4: an error, or a file system whose bitmaps, descriptors and superblock agree, and, for some inputs,
//! one that e2fsck finds nothing wrong with.
//!
//! The input is a list of entries, so that the fuzzer need not find out how tar pads and what names mean something;
//! checksums of headers are not verified under fuzzing.
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
    path: Vec<Name>,
    link: Vec<Name>,
    pax: Vec<Record>,
    numbers: [u32; 5],
    data: Vec<u8>,
}

#[derive(arbitrary::Arbitrary, Debug)]
enum Name {
    A,
    B,
    C,
    Root,
    Parent,
    LostAndFound,
    HideA,
    HideB,
    Opaque,
    Aufs,
    Bytes(Vec<u8>),
}

#[derive(arbitrary::Arbitrary, Debug)]
enum Record {
    Path(Vec<Name>),
    Link(Vec<Name>),
    Number(NumberKey, u64),
    Mtime(i64, u32),
    SparseMap(Vec<(u16, u8)>),
    Text(TextKey, Vec<u8>),
    /// A capability as Linux has it, or an ACL of these tags and permissions.
    Capability([u8; 20]),
    Acl(bool, Vec<(u8, u8, u32)>),
}

#[derive(arbitrary::Arbitrary, Debug)]
enum NumberKey {
    Size,
    Uid,
    Gid,
    SparseSize,
    SparseRealSize,
    SparseMajor,
    SparseOffset,
    SparseLength,
}

#[derive(arbitrary::Arbitrary, Debug)]
enum TextKey {
    Path,
    Mtime,
    SparseMap,
    User,
    Trusted,
    Acl,
}

fuzz_target!(|layers: Vec<Vec<Entry>>| {
    // By the content, so that a finding can be repeated.
    let seed = layers
        .iter()
        .flatten()
        .fold(layers.len(), |sum, entry| sum * 31 + entry.data.len() + entry.path.len());
    let layers: Vec<Layer> = layers.iter().take(4).map(|entries| layer(entries)).collect();
    let count = layers.len();
    let output = memory_file(&[]);
    let limits = Limits { entries: 1000, name_bytes: 100_000, free_bytes: 16 << 20, ratio: 10 };
    let options = Options { size: Some(SIZE), journal: count % 2 == 0, uuid: [3; 16], limits };
    match convert(layers.into_iter().map(Ok), count, &output, &options, &|_| {}) {
        Ok(summary) => {
            assert_eq!(summary.size_bytes, SIZE);
            check(&output);
            if seed % 64 == 0 {
                e2fsck(&output);
            }
        }
        Err(ConvertError::DiffId { .. }) => unreachable!("the digests are right"),
        Err(_) => {}
    }
});

/// Two groups.
const SIZE: u64 = 192 << 20;

/// What the bitmaps say against the descriptors, and their sums against the superblock.
fn check(image: &File) {
    let mut superblock = [0; 1024];
    image.read_exact_at(&mut superblock, 1024).unwrap();
    let field = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from(field(4)) * 4096, SIZE);
    let inodes_per_group = field(0x28);
    let (mut free_blocks, mut free_inodes) = (0, 0);
    for group in 0..2 {
        let mut descriptor = [0; 32];
        image.read_exact_at(&mut descriptor, 4096 + 32 * group).unwrap();
        let long = |at: usize| u32::from_le_bytes(descriptor[at..at + 4].try_into().unwrap());
        let short = |at: usize| u32::from(u16::from_le_bytes([descriptor[at], descriptor[at + 1]]));
        let zeros = |block: u32, bits: u32| {
            let mut bitmap = vec![0; bits as usize / 8];
            image.read_exact_at(&mut bitmap, u64::from(block) * 4096).unwrap();
            bitmap.iter().map(|byte| byte.count_zeros()).sum::<u32>()
        };
        // An unused group's bitmap is a hole, and its last blocks are marked only where it is written.
        assert_eq!(zeros(long(0), 32768), short(0xc));
        assert_eq!(zeros(long(4), inodes_per_group), short(0xe));
        free_blocks += short(0xc);
        free_inodes += short(0xe);
    }
    assert_eq!((free_blocks, free_inodes), (field(0xc), field(0x10)));
}

fn e2fsck(image: &File) {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let output = std::process::Command::new("/usr/sbin/e2fsck").args(["-fn", &path]).output();
    let output = output.expect("e2fsck: install the Debian package e2fsprogs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn text(names: &[Name]) -> Vec<u8> {
    let name = |name: &Name| match name {
        Name::A => b"a".to_vec(),
        Name::B => b"b".to_vec(),
        Name::C => b"c".to_vec(),
        Name::Root => b"".to_vec(),
        Name::Parent => b"..".to_vec(),
        Name::LostAndFound => b"lost+found".to_vec(),
        Name::HideA => b".wh.a".to_vec(),
        Name::HideB => b".wh.b".to_vec(),
        Name::Opaque => b".wh..wh..opq".to_vec(),
        Name::Aufs => b".wh..wh.plnk".to_vec(),
        Name::Bytes(bytes) => bytes.clone(),
    };
    names.iter().map(name).collect::<Vec<_>>().join(&b'/')
}

fn record(record: &Record) -> (&'static str, Vec<u8>) {
    match record {
        Record::Path(names) => ("path", text(names)),
        Record::Link(names) => ("linkpath", text(names)),
        Record::Number(key, number) => {
            let key = match key {
                NumberKey::Size => "size",
                NumberKey::Uid => "uid",
                NumberKey::Gid => "gid",
                NumberKey::SparseSize => "GNU.sparse.size",
                NumberKey::SparseRealSize => "GNU.sparse.realsize",
                NumberKey::SparseMajor => "GNU.sparse.major",
                NumberKey::SparseOffset => "GNU.sparse.offset",
                NumberKey::SparseLength => "GNU.sparse.numbytes",
            };
            (key, number.to_string().into_bytes())
        }
        Record::Mtime(seconds, fraction) => ("mtime", format!("{seconds}.{fraction}").into_bytes()),
        Record::SparseMap(map) => {
            let mut end = 0;
            let mut numbers = Vec::new();
            for (hole, length) in map {
                let offset = end + u64::from(*hole);
                numbers.push(format!("{offset},{length}"));
                end = offset + u64::from(*length);
            }
            ("GNU.sparse.map", numbers.join(",").into_bytes())
        }
        Record::Text(key, value) => {
            let key = match key {
                TextKey::Path => "path",
                TextKey::Mtime => "mtime",
                TextKey::SparseMap => "GNU.sparse.map",
                TextKey::User => "SCHILY.xattr.user.x",
                TextKey::Trusted => "SCHILY.xattr.trusted.y",
                TextKey::Acl => "SCHILY.xattr.system.posix_acl_access",
            };
            (key, value.clone())
        }
        Record::Capability(value) => ("SCHILY.xattr.security.capability", value.to_vec()),
        Record::Acl(is_default, entries) => {
            let key = if *is_default {
                "SCHILY.xattr.system.posix_acl_default"
            } else {
                "SCHILY.xattr.system.posix_acl_access"
            };
            let entries = entries.iter().flat_map(|(tag, permissions, id)| {
                [&[1 << (tag % 6), 0, permissions % 8, 0][..], &id.to_le_bytes()].concat()
            });
            (key, [2, 0, 0, 0].into_iter().chain(entries).collect())
        }
    }
}

fn layer(entries: &[Entry]) -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let records: Vec<_> = entry.pax.iter().map(record).collect();
        tar.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_slice()))).unwrap();
        let mut header = tar::Header::new_gnu();
        let [mode, uid, gid, major, minor] = entry.numbers;
        header.set_mode(mode & 0o7777);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_device_major(major & 0x1fff).unwrap();
        header.set_device_minor(minor & 0x1f_ffff).unwrap();
        header.set_mtime(u64::from(minor) << 4);
        header.set_size(entry.data.len() as u64);
        header.set_entry_type(tar::EntryType::new(b"012345670012567SxLKg"[usize::from(entry.kind) % 20]));
        let bytes = header.as_mut_bytes();
        for (at, text) in [(0, text(&entry.path)), (157, text(&entry.link))] {
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
