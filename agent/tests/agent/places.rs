//! Single files and directories: looked at, read, written, moved and removed.

use crate::host::{Host, assert_root, eventually};
use protocol::{
    Error, ErrorCode, FileEvent, FileEventKind, FileInfo, FileKind, FileRequest, Frame, FrameType, Request,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn ask(request: FileRequest) -> Host {
    Host::ask(&Request::File(request))
}

#[track_caller]
fn fails(request: FileRequest, errno: i32, words: &str) {
    let mut host = ask(request);
    let error: Error = host.expect();
    assert_eq!((error.code, error.errno), (ErrorCode::File, Some(errno)), "{error}");
    assert!(error.message.contains(words), "{error}");
    assert_eq!(host.next(), None);
}

fn stat(path: &Path) -> FileInfo {
    ask(FileRequest::Stat { path: text(path) }).expect()
}

/// The entries of an answer, by path.
fn entries(mut host: Host) -> Vec<FileInfo> {
    let mut entries = Vec::new();
    loop {
        let (kind, payload) = host.next().unwrap();
        if kind == FrameType::Done {
            assert_eq!(host.next(), None);
            entries.sort_by(|a: &FileInfo, b: &FileInfo| a.path.cmp(&b.path));
            return entries;
        }
        entries.push(Frame { kind, payload: &payload }.message().unwrap());
    }
}

fn write(path: &Path, mode: Option<u32>, exclusive: bool, owner: Option<&str>) -> FileRequest {
    FileRequest::Write { path: text(path), mode, exclusive, owner: owner.map(str::to_owned) }
}

fn put(request: FileRequest, content: &[u8]) -> Host {
    let mut host = ask(request);
    for piece in content.chunks(protocol::CHUNK) {
        host.send(FrameType::Data, piece);
    }
    host.send(FrameType::DataEnd, b"");
    host
}

fn get(path: &Path) -> (FileInfo, Vec<u8>) {
    let mut host = ask(FileRequest::Read { path: text(path) });
    let info = host.expect();
    let mut content = Vec::new();
    loop {
        match host.next().unwrap() {
            (FrameType::Data, payload) => content.extend(payload),
            (FrameType::DataEnd, _) => return (info, content),
            other => panic!("{other:?}"),
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let strange = "a b\nü\u{1f980}";
    fs::write(root.join(strange), "12345").unwrap();
    fs::set_permissions(root.join(strange), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::create_dir_all(root.join("d/.hidden/e")).unwrap();
    fs::write(root.join("d/.hidden/e/deep.py"), "").unwrap();
    fs::write(root.join("d/deep.pyc"), "").unwrap();
    symlink("d", root.join("link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();

    let info = stat(&root.join(strange));
    assert_eq!((info.kind, info.is_dir, info.size, info.mode), (FileKind::File, false, 5, 0o4751));
    let metadata = fs::metadata(root.join(strange)).unwrap();
    assert_eq!((info.uid, info.modified_ms / 1000), (metadata.uid(), metadata.mtime() as u64));
    assert_eq!(
        (stat(&root.join("link")).kind, stat(Path::new("/")).path.as_str()),
        (FileKind::Directory, "/")
    );

    let found = entries(ask(FileRequest::List { path: format!("{}/", text(root)) }));
    let shown: Vec<_> =
        found.iter().map(|i| (i.path.as_str(), i.kind, i.is_dir, i.target.as_deref())).collect();
    let path = |name: &str| text(&root.join(name));
    assert_eq!(
        shown,
        [
            (path(strange).as_str(), FileKind::File, false, None),
            (&path("d"), FileKind::Directory, true, None),
            (&path("dangling"), FileKind::Symlink, false, Some("nowhere")),
            (&path("link"), FileKind::Symlink, true, Some("d")),
        ]
    );
    let search = |pattern: &str| {
        let request = FileRequest::Search { path: text(root), pattern: pattern.to_owned() };
        entries(ask(request)).into_iter().map(|info| info.path).collect::<Vec<_>>()
    };
    assert_eq!(search("*.py"), [path("d/.hidden/e/deep.py")]);
    assert_eq!(search("a b*"), [path(strange)]);
    assert_eq!(search("deep.py[c]"), [path("d/deep.pyc")]);
    assert_eq!(search("deep"), Vec::<String>::new());

    fails(FileRequest::Stat { path: path("dangling") }, ENOENT, "dangling");
    fails(FileRequest::List { path: path("missing") }, ENOENT, "missing");
    fails(FileRequest::List { path: path(strange) }, 20, "Not a directory");
    for bad in ["relative", "", "/a\0b", &"/a".repeat(3000)] {
        let error: Error = ask(FileRequest::Stat { path: bad.to_owned() }).expect();
        assert_eq!(error.code, ErrorCode::BadRequest, "{error}");
    }
}

#[test]
fn more_entries_than_one_packet_has() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..2000 {
        fs::write(directory.path().join(format!("{number:05}")), "").unwrap();
    }
    let found = entries(ask(FileRequest::List { path: text(directory.path()) }));
    assert_eq!(found.len(), 2000);
    assert!(found[1999].path.ends_with("/01999"));
}

#[test]
fn a_file_is_written_whole_and_read() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let big: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    put(write(&root.join("new/dir/f"), None, false, None), &big).done();
    let (info, content) = get(&root.join("new/dir/f"));
    assert_eq!((info.size, info.mode, content == big), (big.len() as u64, 0o644, true));

    // What is replaced gives its mode; through a symlink; a hard link keeps the old content.
    let file = root.join("f");
    put(write(&file, Some(0o4751), true, None), b"").done();
    fs::hard_link(&file, root.join("other")).unwrap();
    symlink("f", root.join("link")).unwrap();
    put(write(&root.join("link"), None, false, None), b"x").done();
    assert_eq!((get(&file).1, get(&root.join("other")).1), (b"x".to_vec(), Vec::new()));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o4751);
    assert!(fs::symlink_metadata(root.join("link")).unwrap().is_symlink());

    let mut host = put(write(&file, None, true, None), &big);
    assert_eq!(host.expect::<Error>().errno, Some(EEXIST));
    let mut host = put(write(root, None, false, None), b"");
    assert_eq!(host.expect::<Error>().errno, Some(EISDIR));
    let mut host = put(write(&file.join("below"), None, false, None), b"");
    assert_eq!(host.expect::<Error>().errno, Some(20));
    let mut host = put(write(Path::new("/dev/null"), None, false, None), b"");
    assert_eq!(host.expect::<Error>().errno, Some(EINVAL));
    fails(FileRequest::Read { path: text(root) }, EISDIR, "directory");
    fails(FileRequest::Read { path: "/dev/zero".into() }, EINVAL, "/dev/zero");
    fails(FileRequest::Read { path: text(&root.join("missing")) }, ENOENT, "missing");
    assert_eq!(get(Path::new("/proc/version")).1, fs::read("/proc/version").unwrap());
    assert_eq!(names(root), ["f", "link", "new", "other"]);
}

#[test]
fn a_host_that_goes_away_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    fs::write(&file, "old").unwrap();
    let mut host = ask(write(&file, None, false, None));
    for _ in 0..100 {
        host.send(FrameType::Data, &[1; 1000]);
    }
    eventually("a part is there", || names(directory.path()).len() == 2);
    drop(host);
    eventually("it is gone", || names(directory.path()).len() == 1);
    assert_eq!(fs::read(&file).unwrap(), b"old");
}

#[test]
fn owners() {
    assert_root();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let owner = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        (stat.uid(), stat.gid())
    };
    put(write(&root.join("a/f"), None, false, Some("12:34")), b"").done();
    assert_eq!((owner(&root.join("a")), owner(&root.join("a/f"))), ((12, 34), (12, 34)));
    // The file's own stays.
    put(write(&root.join("a/f"), None, false, Some("56")), b"").done();
    assert_eq!(owner(&root.join("a/f")), (12, 34));
    ask(FileRequest::Mkdir { path: text(&root.join("b/c")), owner: Some("7:8".into()) }).done();
    assert_eq!((owner(&root.join("b")), owner(&root.join("b/c"))), ((7, 8), (7, 8)));
    ask(FileRequest::Copy { from: text(&root.join("a")), to: text(&root.join("copy")) }).done();
    assert_eq!(owner(&root.join("copy/f")), (12, 34));
    let error: Error = put(write(&root.join("x"), None, false, Some("nobody-of-that-name")), b"").expect();
    assert_eq!(error.code, ErrorCode::User);
}

#[test]
fn made_moved_copied_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let path = |name: &str| text(&root.join(name));
    let mkdir = |name: &str| FileRequest::Mkdir { path: path(name), owner: None };
    let copy = |from: &str, to: &str| FileRequest::Copy { from: path(from), to: path(to) };
    let rename = |from: &str, to: &str| FileRequest::Move { from: path(from), to: path(to) };
    let delete = |name: &str| FileRequest::Delete { path: path(name) };

    ask(mkdir("tree/a/b")).done();
    ask(mkdir("tree/a/b")).done();
    fs::write(root.join("tree/a/f"), "content").unwrap();
    symlink("../nowhere", root.join("tree/link")).unwrap();
    fails(mkdir("tree/a/f"), EEXIST, "tree/a/f");
    ask(FileRequest::Chmod { path: path("tree/a/f"), mode: 0o2750 }).done();
    ask(FileRequest::Chmod { path: path("tree/a"), mode: 0o500 }).done();
    fails(FileRequest::Chmod { path: path("missing"), mode: 0o600 }, ENOENT, "missing");

    ask(copy("tree", "copy")).done();
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(fs::read(root.join("copy/a/f")).unwrap(), b"content");
    assert_eq!((stat("copy/a/f").mode() & 0o7777, stat("copy/a").mode() & 0o7777), (0o2750, 0o500));
    assert_eq!(stat("copy/a").mtime_nsec(), stat("tree/a").mtime_nsec());
    assert_eq!(fs::read_link(root.join("copy/link")).unwrap(), Path::new("../nowhere"));
    fails(copy("tree", "tree/a/b/again"), EINVAL, "inside");
    fails(copy("tree", "copy"), EEXIST, "whole new path");
    fails(copy("missing", "x"), ENOENT, "missing");
    fails(copy("tree", "no/such/x"), ENOENT, "no/such");
    ask(copy("copy/a/f", "f")).done();
    ask(copy("f", "f2")).done();

    fs::write(root.join("f"), "other").unwrap();
    ask(rename("f", "f2")).done();
    assert_eq!(fs::read(root.join("f2")).unwrap(), b"other");
    ask(rename("copy", "moved")).done();
    fails(rename("f", "g"), ENOENT, "/f");
    fails(rename("f2", "moved"), EEXIST, "moved");
    fails(rename("moved", "moved/below"), EINVAL, "inside");
    // From one file system to another.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let there = elsewhere.path().join("moved");
    ask(FileRequest::Move { from: path("moved"), to: text(&there) }).done();
    assert_eq!(fs::read(there.join("a/f")).unwrap(), b"content");
    assert!(!root.join("moved").exists());

    ask(delete("tree/link")).done();
    ask(delete("tree")).done();
    fails(delete("tree"), ENOENT, "tree");
    fails(FileRequest::Delete { path: "/".into() }, 16, "/");
    assert_eq!(names(root), ["f2"]);
}

/// Deeper than a path can say.
#[test]
fn a_deep_tree_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("deep");
    fs::create_dir(&root).unwrap();
    let mut fd = rustix::fs::open(&root, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let name = "n".repeat(50);
    for _ in 0..400 {
        rustix::fs::mkdirat(&fd, &name, rustix::fs::Mode::RWXU).unwrap();
        fd = rustix::fs::openat(&fd, &name, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    let found = entries(ask(FileRequest::Search { path: text(&root), pattern: "n*".into() }));
    assert!((50..100).contains(&found.len()), "{}", found.len());
    ask(FileRequest::Delete { path: text(&root) }).done();
    assert!(!root.exists());
}

/// Events up to one of this kind and path; a marker ends what is looked at.
fn until(host: &mut Host, kind: FileEventKind, path: &Path) -> Vec<FileEvent> {
    let mut events = Vec::new();
    loop {
        let event: FileEvent = host.expect();
        let last = event.kind == kind && event.path == text(path);
        events.push(event);
        if last {
            return events;
        }
    }
}

fn begin(path: &Path, recursive: bool) -> Host {
    let mut host = ask(FileRequest::Watch { path: text(path), recursive, ignore_hidden: true });
    assert_eq!(host.next().unwrap().0, FrameType::Done);
    host
}

#[test]
fn a_tree_is_watched() {
    use FileEventKind::{Chmod, Created, Deleted, Modified, Renamed};
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("d/.hidden")).unwrap();
    let mut host = begin(root, true);
    fs::write(root.join("d/.hidden/unseen"), "").unwrap();
    fs::write(root.join("d/f"), "12").unwrap();
    let events = until(&mut host, Modified, &root.join("d/f"));
    assert_eq!((events[0].kind, &*events[0].path), (Created, &*text(&root.join("d/f"))));
    assert_eq!(events.last().unwrap().size, Some(2));
    fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(until(&mut host, Chmod, &root.join("d/f")).len(), 1);
    // A directory with its content moves as a whole, and is watched on.
    fs::rename(root.join("d"), root.join("e")).unwrap();
    let events = until(&mut host, Renamed, &root.join("e"));
    assert_eq!(events[0].old_path.as_deref(), Some(&*text(&root.join("d"))));
    fs::create_dir_all(root.join("e/new/deep")).unwrap();
    until(&mut host, Created, &root.join("e/new/deep"));
    // What came before the watch of a new directory is told as well.
    put(write(&root.join("e/new/deep/file"), None, false, None), b"x").done();
    let events = until(&mut host, Created, &root.join("e/new/deep/file"));
    assert!(events.iter().all(|event| !event.path.contains(".voidrun")), "{events:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(root.join("e/new"), elsewhere.path().join("new")).unwrap();
    until(&mut host, Deleted, &root.join("e/new"));
    fs::write(elsewhere.path().join("new/unseen"), "").unwrap();
    fs::remove_dir_all(root).unwrap();
    let events = until(&mut host, Deleted, root);
    assert!(events.iter().all(|event| !event.path.contains("unseen")), "{events:?}");
    assert_eq!(host.next().unwrap().0, FrameType::DataEnd);
    assert_eq!(host.next(), None);
    fs::create_dir(root).unwrap();
}

#[test]
fn a_file_is_watched_though_it_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    fs::write(&file, "1").unwrap();
    let mut host = begin(&file, true);
    fs::write(directory.path().join("other"), "1").unwrap();
    fs::rename(directory.path().join("other"), &file).unwrap();
    let events = until(&mut host, FileEventKind::Renamed, &file);
    assert_eq!(events.len(), 1);
    fs::write(&file, "123").unwrap();
    let events = until(&mut host, FileEventKind::Modified, &file);
    assert!(events.iter().all(|event| event.path == text(&file)), "{events:?}");
    fails(
        FileRequest::Watch { path: "/no/such".into(), recursive: true, ignore_hidden: true },
        ENOENT,
        "/no/such",
    );
}

/// What the host does not read is lost in the end, and it is told so.
#[test]
fn an_overflow_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = begin(directory.path(), false);
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    fs::write(&a, "").unwrap();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for _ in 0..limit.trim().parse::<usize>().unwrap() {
        fs::rename(&a, &b).unwrap();
        fs::rename(&b, &a).unwrap();
    }
    until(&mut host, FileEventKind::Overflow, directory.path());
}
