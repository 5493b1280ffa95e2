//! Files in and out.

use crate::host::{Host, assert_root};
use protocol::{Error, ErrorCode, FrameType, Request};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use tar::{EntryType, Header};

/// A writer of archives that takes any name.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.add(EntryType::Regular, name, "", 0o640, content)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, 0o777, b"")
    }
}

fn send(path: &Path, owner: Option<&str>, mut archive: Vec<u8>) -> Host {
    archive.resize(archive.len() + 1024, 0);
    let path = path.to_str().unwrap().to_owned();
    let mut host = Host::ask(&Request::Upload { path, owner: owner.map(str::to_owned) });
    for piece in archive.chunks(protocol::CHUNK) {
        host.send(FrameType::Data, piece);
    }
    host.send(FrameType::DataEnd, b"");
    host
}

fn upload(path: &Path, archive: Archive) {
    send(path, None, archive.0).done();
}

fn refused(path: &Path, archive: Archive) -> Error {
    send(path, None, archive.0).expect()
}

fn download(path: &Path, follow: bool) -> Result<Vec<u8>, Error> {
    let path = path.to_str().unwrap().to_owned();
    let mut host = Host::ask(&Request::Download { path, follow });
    let mut archive = Vec::new();
    loop {
        let (kind, payload) = host.next().unwrap();
        match kind {
            FrameType::Data => archive.extend(payload),
            FrameType::DataEnd => return Ok(archive),
            _ => return Err(protocol::Frame { kind, payload: &payload }.message().unwrap()),
        }
    }
}

#[test]
fn a_tree_comes_in() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("made/deep");
    let big = vec![7; 300_000];
    let archive = Archive::default()
        .add(EntryType::Directory, "d/", "", 0o700, b"")
        .file("d/file", b"content")
        .file("missing/parents/file", &big)
        .add(EntryType::Regular, "/absolute", "", 0o4755, b"x")
        .symlink("d/link", "../anywhere/at/all")
        .add(EntryType::Link, "d/hard", "d/file", 0, b"")
        // Once more, over what is there.
        .add(EntryType::Link, "d/hard", "d/file", 0, b"")
        .file("absolute", b"replaced");
    upload(&root, archive);
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(fs::read(root.join("d/file")).unwrap(), b"content");
    assert_eq!((stat("d").mode() & 0o7777, stat("d/file").mode() & 0o7777), (0o700, 0o640));
    assert_eq!((stat("d/file").mtime(), stat("d/file").nlink()), (1_000_000_000, 2));
    assert_eq!(stat("d/hard").ino(), stat("d/file").ino());
    assert_eq!(fs::read(root.join("missing/parents/file")).unwrap(), big);
    assert_eq!(fs::read_link(root.join("d/link")).unwrap(), Path::new("../anywhere/at/all"));
    assert_eq!(fs::read(root.join("absolute")).unwrap(), b"replaced");
    let mut names: Vec<_> =
        fs::read_dir(root.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "hard", "link"]);
}

#[test]
fn nothing_leaves_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("was-there")).unwrap();
    let outside_name = outside.to_str().unwrap();
    upload(&root, Archive::default().file("fine", b""));
    for (archive, named) in [
        (Archive::default().file("../outside/evil", b"x"), "../outside/evil"),
        (Archive::default().file("a/../../outside/evil", b"x"), "a/../../outside/evil"),
        (Archive::default().symlink("out", outside_name).file("out/evil", b"x"), "out/evil"),
        (Archive::default().symlink("up", "..").file("up/outside/evil", b"x"), "up/outside/evil"),
        (Archive::default().file("was-there/evil", b"x"), "was-there/evil"),
        (
            Archive::default().symlink("o", outside_name).add(EntryType::Directory, "o/evil", "", 0o755, b""),
            "o/evil",
        ),
        (
            Archive::default().symlink("s", outside_name).add(EntryType::Link, "h", "s/secret", 0, b""),
            "s/secret",
        ),
        (Archive::default().add(EntryType::Link, "h", "../outside/secret", 0, b""), "../outside/secret"),
        (Archive::default().symlink("proc", "/proc/self/root").file("proc/evil", b"x"), "proc/evil"),
    ] {
        let error = refused(&root, archive);
        assert_eq!(error.code, ErrorCode::Archive, "{error}");
        assert!(error.message.contains(named), "{error}");
    }
    // A symlink in the last place is replaced, not followed.
    upload(
        &root,
        Archive::default().symlink("secret", &format!("{outside_name}/secret")).file("secret", b"new"),
    );
    assert_eq!(fs::read(root.join("secret")).unwrap(), b"new");
    // What stays beneath may be used.
    upload(&root, Archive::default().file("real/a", b"").symlink("alias", "real").file("alias/b", b"b"));
    assert_eq!(fs::read(root.join("real/b")).unwrap(), b"b");
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    assert!(!root.join("evil").exists());
}

#[test]
fn a_damaged_archive_leaves_no_part_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut archive = Archive::default().file("whole", b"1").file("cut", &[1; 2000]);
    archive.0.truncate(3 * 512 + 100);
    let path = directory.path().to_str().unwrap().to_owned();
    let mut host = Host::ask(&Request::Upload { path, owner: None });
    host.send(FrameType::Data, &archive.0);
    host.send(FrameType::DataEnd, b"");
    assert_eq!(host.expect::<Error>().code, ErrorCode::Archive);
    let names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["whole"]);

    let file = directory.path().join("whole");
    let error = refused(&file, Archive::default().file("x", b""));
    assert!(error.code == ErrorCode::File && error.message.contains("whole"), "{error}");
    let error = refused(Path::new("relative"), Archive::default());
    assert_eq!(error.code, ErrorCode::BadRequest);
}

/// The answer comes while the host is still writing, and is not lost.
#[test]
fn an_early_refusal_of_a_long_upload_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut archive = Archive::default().file("../x", b"").0;
    archive.resize(4 << 20, 1);
    let mut host = send(directory.path(), None, archive);
    assert_eq!(host.expect::<Error>().code, ErrorCode::Archive);
}

#[test]
fn an_owner_is_given() {
    assert_root();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("new");
    let archive = Archive::default().file("d/f", b"").symlink("l", "nowhere").add(
        EntryType::Regular,
        "s",
        "",
        0o4755,
        b"",
    );
    let mut host = send(&root, Some("12:34"), archive.0);
    host.done();
    for name in ["", "d", "d/f", "l", "s"] {
        let stat = fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (12, 34), "{name}");
    }
    assert_eq!(fs::metadata(root.join("s")).unwrap().mode() & 0o7777, 0o4755);
}

#[test]
fn a_tree_goes_out_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("from");
    let long = "n".repeat(200);
    fs::create_dir_all(from.join("d/e")).unwrap();
    fs::write(from.join("d/big"), vec![9; 200_001]).unwrap();
    fs::write(from.join(&long), "long").unwrap();
    fs::set_permissions(from.join(&long), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("d/big", from.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        from.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let archive = download(&from, false);
    upload(directory.path().join("to").as_path(), Archive(archive.unwrap()));
    let to = directory.path().join("to/from");
    assert_eq!(fs::read(to.join("d/big")).unwrap(), vec![9; 200_001]);
    assert_eq!(fs::metadata(to.join(&long)).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("d/big"));
    assert!(to.join("d/e").is_dir() && !to.join("pipe").exists());
}

#[test]
fn names_and_errors_of_what_goes_out() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    symlink("file", directory.path().join("link")).unwrap();
    let names = |path: &str, follow| {
        let archive = download(&directory.path().join(path), follow).unwrap();
        let mut archive = tar::Archive::new(archive.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (String::from_utf8_lossy(&entry.path_bytes()).into_owned(), entry.header().entry_type())
        });
        entries.collect::<Vec<_>>()
    };
    let file = names("file", false);
    assert_eq!(file, [("file".to_owned(), EntryType::Regular)]);
    assert_eq!(names("link", false), [("link".to_owned(), EntryType::Symlink)]);
    assert_eq!(names("link", true), [("link".to_owned(), EntryType::Regular)]);
    let missing = directory.path().join("missing");
    let error = download(&missing, false).unwrap_err();
    assert_eq!((error.code, error.errno), (ErrorCode::File, Some(2)));
    assert!(error.message.contains(missing.to_str().unwrap()), "{error}");
}
