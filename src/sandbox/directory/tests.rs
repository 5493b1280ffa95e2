use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use rootfs_builder::image::Digest;

use super::*;

fn sandboxes() -> (tempfile::TempDir, Sandboxes) {
    let dir = tempfile::tempdir().unwrap();
    let sandboxes = Sandboxes::new(dir.path());
    (dir, sandboxes)
}

fn record(ephemeral: bool) -> Record {
    let record = serde_json::json!({
        "version": 1, "image": Digest::of(b"image"), "imageName": "tool", "config": { "platform": "linux/amd64" },
        "diskBytes": 4096, "kernel": "/vmlinux", "cpus": 1, "memoryMib": 1024, "ephemeral": ephemeral, "createdAtMs": 0,
    });
    serde_json::from_value(record).unwrap()
}

/// Another process that has `lock` as its standard input, as the process of a machine has its own.
fn holder(lock: OwnedFd) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", "echo holding; exec sleep 1000"])
        .stdin(lock)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    child
}

#[test]
fn what_a_living_process_holds_stays_and_goes_when_it_is_killed() {
    let (_dir, sandboxes) = sandboxes();
    let (directory, lock) = sandboxes.create().unwrap();
    directory.write_record(&record(true)).unwrap();
    // Our copy of the descriptor is closed with the spawn: the lock is the other process's alone.
    let mut child = holder(lock);
    sandboxes.sweep().unwrap();
    assert!(!directory.remove().unwrap());
    assert!(directory.path("spec.json").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    sandboxes.sweep().unwrap();
    assert!(!directory.path("").exists());
}

#[test]
fn what_is_being_made_is_not_swept() {
    let (_dir, sandboxes) = sandboxes();
    let (directory, lock) = sandboxes.create().unwrap();
    sandboxes.sweep().unwrap();
    assert!(directory.path("lock").exists());
    drop(lock);
    sandboxes.sweep().unwrap();
    assert!(!directory.path("").exists());
}

#[test]
fn a_sweep_does_not_disturb_a_making() {
    let (dir, sandboxes) = sandboxes();
    let (_other, _lock) = sandboxes.create().unwrap();
    // As a creation stands between the directory and its lock.
    let unlocked = dir.path().join("sandboxes/0123456789ab");
    std::fs::create_dir(&unlocked).unwrap();
    let making = sandboxes.locked(FlockOperation::LockShared).unwrap();
    sandboxes.sweep().unwrap();
    assert!(unlocked.exists());
    drop(making);
    sandboxes.sweep().unwrap();
    assert!(!unlocked.exists());
}

#[test]
fn what_is_to_be_kept_and_what_is_not_ours_stays() {
    let (dir, sandboxes) = sandboxes();
    sandboxes.sweep().unwrap();
    let (kept, lock) = sandboxes.create().unwrap();
    kept.write_record(&record(false)).unwrap();
    drop(lock);
    let (torn, lock) = sandboxes.create().unwrap();
    torn.create_file("spec.json").unwrap().write_all(b"{\"version\":1,").unwrap();
    drop(lock);
    let strange = dir.path().join("sandboxes/strange");
    std::fs::create_dir(&strange).unwrap();
    sandboxes.sweep().unwrap();
    assert!(kept.path("spec.json").exists() && strange.exists());
    assert!(!torn.path("").exists());
}

#[test]
fn removal_by_several_at_once() {
    let (_dir, sandboxes) = sandboxes();
    for _ in 0..50 {
        let (directory, lock) = sandboxes.create().unwrap();
        directory.write_record(&record(true)).unwrap();
        drop(lock);
        std::thread::scope(|scope| {
            scope.spawn(|| directory.remove().unwrap());
            scope.spawn(|| sandboxes.sweep().unwrap());
            scope.spawn(|| sandboxes.sweep().unwrap());
        });
        sandboxes.sweep().unwrap();
        assert!(!directory.path("").exists());
    }
}

#[test]
fn sockets_below_a_path_that_is_too_long_for_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a".repeat(100)).join("b".repeat(100));
    let (directory, _lock) = Sandboxes::new(&deep).create().unwrap();
    let _listener = directory.listen("control.sock").unwrap();
    assert!(directory.path("control.sock").exists());
    std::os::unix::net::UnixStream::connect(directory.socket("control.sock")).unwrap();
}

#[test]
fn a_lock_is_claimed_by_one() {
    let (_dir, sandboxes) = sandboxes();
    let (directory, lock) = sandboxes.create().unwrap();
    assert!(matches!(directory.claim().unwrap(), Claim::Held));
    drop(lock);
    let Claim::Ours(lock) = directory.claim().unwrap() else { panic!() };
    assert!(matches!(directory.claim().unwrap(), Claim::Held));
    assert!(!directory.remove().unwrap());
    drop(lock);
    assert!(directory.remove().unwrap());
    assert!(matches!(directory.claim().unwrap(), Claim::NoLock));
}

#[test]
fn records_are_replaced_whole_and_those_of_a_newer_release_are_kept() {
    let (_dir, sandboxes) = sandboxes();
    let (directory, lock) = sandboxes.create().unwrap();
    assert_eq!(directory.fate(), None);
    directory.write_record(&record(false)).unwrap();
    assert_eq!((directory.read_record().unwrap(), directory.fate()), (record(false), Some(Fate::Keep)));
    let mut removed = record(false);
    removed.removed = true;
    directory.write_record(&removed).unwrap();
    assert_eq!(directory.fate(), Some(Fate::Remove));
    assert_eq!(std::fs::read_dir(directory.path("")).unwrap().count(), 2, "a temporary file is left");

    std::fs::write(directory.path("spec.json"), br#"{"version":2,"ephemeral":false}"#).unwrap();
    let error = std::error::Error::source(&directory.read_record().unwrap_err()).unwrap().to_string();
    assert!(error.contains("version 2"), "{error}");
    drop(lock);
    sandboxes.sweep().unwrap();
    assert!(directory.path("spec.json").exists());
}

#[test]
fn records_are_what_the_stores_collection_reads() {
    let json = serde_json::to_value(record(true)).unwrap();
    assert_eq!(json["image"], Digest::of(b"image").to_string());
    assert_eq!((&json["cpus"], &json["memoryMib"]), (&1.into(), &1024.into()));
}

#[test]
fn a_sandbox_from_before_there_was_a_network_has_none() {
    use net::policy::{Mode, Policy};

    let mut old = record(false);
    assert_eq!(old.network, Mode::None.into());
    old.network = Policy::default();
    let json = serde_json::to_vec(&old).unwrap();
    assert_eq!(Record::parse(&json).unwrap(), old);
}
