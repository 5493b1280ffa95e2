//! Very many objects within the memory bound: 64 MiB, 256 bytes an entry, and the names.

use std::io::{Seek, Write};

use rootfs_builder::convert::{Layer, Limits, Options, convert};
use rootfs_builder::image::{Descriptor, Digest};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::layer::{MIB, assert_clean};

#[test]
fn a_million_empty_files_in_one_directory() {
    within_the_bound("a_million_empty_files_in_one_directory", 1_000_000, |_| {
        (header(EntryType::Regular, 0), Vec::new())
    });
}

/// What costs most: each has attributes, different ones, and a piece of data behind a hole.
#[test]
fn sparse_files_with_attributes() {
    within_the_bound("sparse_files_with_attributes", 300_000, |i| {
        let attribute = format!("SCHILY.xattr.security.capability={i:020}\n");
        let sparse = "24 GNU.sparse.size=9000\n25 GNU.sparse.map=4096,1\n";
        let records = format!("{} {attribute}{sparse}", attribute.len() + 3);
        let mut pax = header(EntryType::XHeader, records.len() as u64).as_bytes().to_vec();
        pax.extend(records.into_bytes());
        pax.resize(1024, 0);
        (header(EntryType::Regular, 1), pax)
    });
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

/// Converts `count` entries in a process of its own, so that nothing else counts. `entry` gives the header of the n-th,
/// which is named here, and what comes before it.
fn within_the_bound(test: &str, count: u64, entry: impl Fn(u64) -> (Header, Vec<u8>)) {
    if std::env::var_os("MILLION_CHILD").is_some() {
        return convert_many(count, entry);
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("million::{test}"), "--nocapture"])
        .env("MILLION_CHILD", "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn convert_many(count: u64, entry: impl Fn(u64) -> (Header, Vec<u8>)) {
    let mut hash = Sha256::new();
    let mut gzip = flate2::write::GzEncoder::new(tempfile::tempfile().unwrap(), flate2::Compression::fast());
    let mut put = |bytes: &[u8]| {
        hash.update(bytes);
        gzip.write_all(bytes).unwrap();
    };
    for i in 0..count {
        let (mut header, before) = entry(i);
        header.set_path(format!("dir/file-{i:07}")).unwrap();
        header.set_cksum();
        put(&before);
        put(header.as_bytes());
        if header.size().unwrap() > 0 {
            put(&[1; 512]);
        }
    }
    put(&[0; 1024]);
    let mut blob = gzip.finish().unwrap();
    let size = blob.stream_position().unwrap();
    blob.rewind().unwrap();
    let descriptor = Descriptor {
        digest: Digest::of(b"not looked at"),
        size,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
    };
    let layer = Layer { blob, descriptor, diff_id: Digest::from_hash(hash) };
    let output = tempfile::NamedTempFile::new().unwrap();
    let options = Options { size: None, journal: true, uuid: [7; 16], limits: Limits::default() };
    let summary = convert(std::iter::once(Ok(layer)), 1, output.as_file(), &options, &|_| {}).unwrap();
    let peak = peak_memory();
    let bound = 64 * MIB + (256 + "file-0000000".len() as u64) * count;
    println!("{count} entries: {} MiB at the peak, {} MiB allowed", peak / MIB, bound / MIB);
    // The root, lost+found and the directory.
    assert_eq!(u64::from(summary.inodes), count + 3);
    assert!(peak <= bound, "{peak} bytes at the peak, {bound} allowed");
    assert_clean(output.path());
}

/// The process's largest resident set so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
