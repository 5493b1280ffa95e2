//! A program of another release: a copy of ours with another number in it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// In `directory`; `release` has as many digits as ours.
pub(crate) fn program_of(directory: &Path, release: &str) -> PathBuf {
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_voidrun")).unwrap();
    let words = concat!("this is voidrun ", env!("CARGO_PKG_VERSION")).as_bytes();
    let places: Vec<usize> = bytes
        .windows(words.len())
        .enumerate()
        .filter_map(|(at, part)| (part == words).then_some(at))
        .collect();
    assert_eq!(places.len(), 1, "{places:?}");
    let end = places[0] + words.len();
    bytes[end - release.len()..end].copy_from_slice(release.as_bytes());
    let path = directory.join(format!("voidrun-{release}"));
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
