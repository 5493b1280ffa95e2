//! A stream from somebody who means harm, unpacked under a name that the receiver has chosen.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use archive::{Error, Pack, Unpack, pack, unpack};
use proptest::prelude::*;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

#[derive(Clone, Debug)]
struct Entry {
    kind: EntryType,
    path: String,
    link: String,
}

fn stream(entries: &[Entry]) -> Vec<u8> {
    let mut stream = Vec::new();
    for Entry { kind, path, link } in entries {
        let content = if *kind == EntryType::Regular { "evil" } else { "" };
        let mut header = Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o6777);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        stream.extend_from_slice(header.as_bytes());
        stream.extend_from_slice(content.as_bytes());
        stream.resize(stream.len().next_multiple_of(512), 0);
    }
    stream.resize(stream.len() + 1024, 0);
    stream
}

fn entry(kind: EntryType, path: &str, link: &str) -> Entry {
    Entry { kind, path: path.to_owned(), link: link.to_owned() }
}

fn receive(root: &Path, name: &str, entries: &[Entry]) -> Result<(), Error> {
    let to = Unpack { path: root, owner: None, name: Some(Path::new(name)), modes: 0o777 };
    unpack(&mut &stream(entries)[..], &to)
}

/// Everything below a directory, with what is in files and where links lead.
fn tree(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            let content = if kind.is_dir() {
                directories.push(path.clone());
                String::new()
            } else if kind.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                fs::read_to_string(&path).unwrap()
            };
            found.push((path, content));
        }
    }
    found.sort();
    found
}

#[test]
fn the_receiver_names_what_comes() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::write(root.join(".profile"), "mine").unwrap();
    // Asked for one thing, the sender gives others.
    let entries = [
        entry(EntryType::Regular, ".profile", ""),
        entry(EntryType::Regular, "/.profile", ""),
        entry(EntryType::Regular, "./.profile", ""),
    ];
    receive(root, "wanted", &entries[..2]).unwrap();
    assert_eq!(tree(root), [(root.join(".profile"), "mine".into()), (root.join("wanted"), "evil".into())]);
    // Nobody but the caller is to be served by it: no set-user-ID.
    assert_eq!(fs::metadata(root.join("wanted")).unwrap().permissions().mode() & 0o7777, 0o777);
    fs::remove_file(root.join("wanted")).unwrap();
    receive(root, "wanted", &entries[2..]).unwrap();
    assert_eq!(fs::read_to_string(root.join("wanted/.profile")).unwrap(), "evil");
    assert_eq!(fs::read_to_string(root.join(".profile")).unwrap(), "mine");
    // What is in a directory: the first component goes.
    receive(root, "", &[entry(EntryType::Directory, "d/", ""), entry(EntryType::Regular, "d/f", "")])
        .unwrap();
    assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "evil");
    let escape = receive(root, "wanted", &[entry(EntryType::Regular, "../f", "")]);
    assert!(matches!(escape, Err(Error::Leaves(_))), "{escape:?}");
}

#[test]
fn symlinks_that_are_there_are_not_followed_out() {
    let directory = tempfile::tempdir().unwrap();
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("wanted")).unwrap();
    let through = receive(&root, "wanted", &[entry(EntryType::Regular, "x/secret", "")]);
    assert!(matches!(through, Err(Error::Leaves(_))), "{through:?}");
    let link = receive(&root, "wanted", &[entry(EntryType::Link, "x/h", "x/secret")]);
    assert!(link.is_err(), "{link:?}");
    assert_eq!(tree(&outside), [(outside.join("secret"), "secret".into())]);
}

/// The directory that holds what comes is as much outside as any other.
#[test]
fn symlinks_that_come_do_not_lead_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir(root.join("hooks")).unwrap();
    fs::write(root.join("hooks/secret"), "mine").unwrap();
    // In one stream: what comes is itself the link.
    let link = [entry(EntryType::Symlink, "x", "."), entry(EntryType::Regular, "x/hooks/new", "")];
    let escape = receive(root, "wanted", &link);
    assert!(matches!(escape, Err(Error::Leaves(_))), "{escape:?}");
    fs::remove_file(root.join("wanted")).unwrap();
    // In two: the first leaves a link, and the second goes through it.
    let (made, through) = (
        [entry(EntryType::Directory, "x", ""), entry(EntryType::Symlink, "x/l", "../hooks")],
        [entry(EntryType::Directory, "x", ""), entry(EntryType::Regular, "x/l/new", "")],
    );
    receive(root, "wanted", &made).unwrap();
    let escape = receive(root, "wanted", &through);
    assert!(matches!(escape, Err(Error::Leaves(_))), "{escape:?}");
    let copied = receive(root, "wanted", &[entry(EntryType::Link, "x/h", "x/l/secret")]);
    assert!(matches!(copied, Err(Error::Leaves(_))), "{copied:?}");
    assert_eq!(tree(&root.join("hooks")), [(root.join("hooks/secret"), "mine".into())]);
    // Links beneath it may be followed.
    let inside = [
        entry(EntryType::Directory, "x/d", ""),
        entry(EntryType::Symlink, "x/in", "d"),
        entry(EntryType::Regular, "x/in/f", ""),
    ];
    receive(root, "wanted", &inside).unwrap();
    assert_eq!(fs::read_to_string(root.join("wanted/d/f")).unwrap(), "evil");
}

#[test]
fn a_tree_under_another_name() {
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("from");
    fs::create_dir_all(from.join("d")).unwrap();
    fs::write(from.join("d/f"), "content").unwrap();
    for (given, name, expected) in [
        (Some("other"), None, "other/d/f"),
        (None, Some("new"), "new/d/f"),
        (Some("."), Some("new"), "new/d/f"),
    ] {
        let to = directory.path().join(format!("{given:?}"));
        let mut stream = Vec::new();
        pack(&mut stream, &Pack { path: &from, name: given.map(OsStr::new), follow: false }).unwrap();
        let name = name.map(Path::new);
        unpack(&mut &stream[..], &Unpack { path: &to, owner: None, name, modes: 0o777 }).unwrap();
        assert_eq!(fs::read_to_string(to.join(expected)).unwrap(), "content");
    }
}

fn path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "x", "..", ".", "", "outside", "root"]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let kind = prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Symlink,
        EntryType::Link,
    ]);
    let one = (kind, path(), path()).prop_map(|(kind, path, link)| Entry { kind, path, link });
    prop::collection::vec(one, 1..12)
}

proptest! {
    /// Whatever an archive says, nothing outside changes, and beneath the directory nothing but the name that was asked for.
    #[test]
    fn nothing_leaves(archive in entries(), rename in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::write(root.join("b"), "mine").unwrap();
        let name = rename.then(|| Path::new("wanted"));
        let to = Unpack { path: &root, owner: None, name, modes: 0o777 };
        let _ = unpack(&mut &stream(&archive)[..], &to);
        prop_assert_eq!(tree(&outside), [(outside.join("secret"), "secret".to_owned())]);
        let mut beside: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        beside.sort();
        prop_assert_eq!(beside, ["outside", "root"]);
        let names = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names: Vec<_> = names.collect();
        prop_assert!(!names.iter().any(|name| name.starts_with(".voidrun")), "{:?}", names);
        if rename {
            prop_assert!(names.iter().all(|name| name == "b" || name == "wanted"), "{:?}", names);
            prop_assert_eq!(fs::read_to_string(root.join("b")).unwrap(), "mine");
        }
    }
}
