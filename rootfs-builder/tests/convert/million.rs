//! A million empty files in one directory, within the memory bound.

use std::io::{Seek, Write};

use rootfs_builder::convert::{Layer, Limits, Options, convert};
use rootfs_builder::image::{Descriptor, Digest};
use sha2::{Digest as _, Sha256};

use super::layer::{MIB, assert_clean};

const FILES: u64 = 1_000_000;

/// What the conversion may need: 64 MiB, 256 bytes an entry, and the names.
const BOUND: u64 = 64 * MIB + 256 * FILES + FILES * 16;

/// Converts in a process of its own, so that nothing else counts.
#[test]
fn stays_within_the_memory_bound() {
    if std::env::var_os("MILLION_CHILD").is_some() {
        return convert_a_million();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "million::stays_within_the_memory_bound", "--nocapture"])
        .env("MILLION_CHILD", "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn convert_a_million() {
    let mut hash = Sha256::new();
    let mut gzip = flate2::write::GzEncoder::new(tempfile::tempfile().unwrap(), flate2::Compression::fast());
    let mut put = |bytes: &[u8]| {
        hash.update(bytes);
        gzip.write_all(bytes).unwrap();
    };
    for i in 0..FILES {
        let mut header = tar::Header::new_gnu();
        header.set_path(format!("dir/file-{i:06}")).unwrap();
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        put(header.as_bytes());
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
    let before = peak_memory();
    let output = tempfile::NamedTempFile::new().unwrap();
    let options = Options { size: None, journal: true, uuid: [7; 16], limits: Limits::default() };
    let summary = convert(std::iter::once(Ok(layer)), 1, output.as_file(), &options, &|_| {}).unwrap();
    let peak = peak_memory();
    eprintln!("peak memory {} MiB, bound {} MiB, before {} MiB", peak / MIB, BOUND / MIB, before / MIB);
    assert_eq!(u64::from(summary.inodes), FILES + 3);
    assert!(peak <= BOUND, "{peak} bytes at the peak, {BOUND} allowed");
    assert_clean(output.path());
}

/// The process's largest resident set so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
