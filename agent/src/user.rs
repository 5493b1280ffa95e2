//! Who a command runs as: /etc/passwd and /etc/group of the image, read by hand, as a static program has no NSS.

use crate::refusal;
use protocol::{Error, ErrorCode};
use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, Mode, OFlags};
use std::ffi::CStr;

/// Of each of the two files no more than this is read.
const MAX_FILE: usize = 4 << 20;

/// Most are shorter.
const USUAL_FILE: usize = 4 << 10;

/// A user, its groups and its home.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The supplementary groups: those the image gives the user, or the one that was asked for.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl User {
    /// The user that `spec` names in this image: `uid`, `uid:gid`, `name` or `name:group`.
    pub(crate) fn find(spec: &str) -> Result<Self, Error> {
        Self::find_in(spec, &read(c"/etc/passwd"), &read(c"/etc/group"))
    }

    /// The home of this image's root.
    pub(crate) fn home_of_root() -> Result<String, Error> {
        Self::find_in("0", &read(c"/etc/passwd"), "").map(|user| user.home)
    }

    fn find_in(spec: &str, passwd: &str, group: &str) -> Result<Self, Error> {
        let (name, group_name) = match spec.split_once(':') {
            Some((name, group_name)) => (name, Some(group_name)),
            None => (spec, None),
        };
        // An image without /etc/passwd still has its root.
        let number = if name == "root" { Some(0) } else { id(name) };
        let account = accounts(passwd)
            .find(|account| account.name == name)
            .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
        let (uid, mut gid, home) = match (&account, number) {
            (Some(account), _) => (account.uid, account.gid, account.home),
            (None, Some(uid)) => (uid, 0, "/"),
            (None, None) => {
                return Err(refusal(
                    ErrorCode::User,
                    format!("user {name:?} is not in the image's /etc/passwd"),
                ));
            }
        };
        let mut supplementary: Vec<u32> = groups(group)
            .filter(|group| {
                account.as_ref().is_some_and(|account| group.members().any(|name| name == account.name))
            })
            .map(|group| group.gid)
            .collect();
        if let Some(name) = group_name {
            let named = groups(group).find(|group| group.name == name).map(|group| group.gid);
            gid = named.or_else(|| id(name)).or((name == "root").then_some(0)).ok_or_else(|| {
                refusal(ErrorCode::User, format!("group {name:?} is not in the image's /etc/group"))
            })?;
            supplementary = Vec::new();
        }
        if !supplementary.contains(&gid) {
            supplementary.push(gid);
        }
        let home = if home.is_empty() { "/" } else { home };
        Ok(Self { uid, gid, groups: supplementary, home: home.to_owned() })
    }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let (_comment, home) = (fields.next()?, fields.next()?);
        Some(Account { name, uid, gid, home })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn members(&self) -> impl Iterator<Item = &str> {
        self.members.split(',').map(str::trim)
    }
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some(Group { name, gid: id(fields.next()?)?, members: fields.next().unwrap_or_default() })
    })
}

/// A uid or gid; -1 is none, setuid(2) takes it for "unchanged".
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&id| id != u32::MAX)
}

/// A file of the image; nothing if it is not there.
fn read(path: &CStr) -> String {
    let mut bytes = Vec::with_capacity(USUAL_FILE);
    if let Ok(file) = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        // A read that leaves room has met the end.
        while rustix::io::read(&file, spare_capacity(&mut bytes)).is_ok()
            && bytes.len() == bytes.capacity()
            && bytes.len() < MAX_FILE
        {
            bytes.reserve(bytes.len());
        }
    }
    bytes.truncate(MAX_FILE);
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        nonsense\n\
        app:x:1000:1001:An app,,,:/home/app:/bin/sh\n\
        bare:x:7:7::\n\
        8:x:9:9::/nine:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nvideo:x:44: app\napp:x:1001:\n";

    fn find(spec: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        User::find_in(spec, PASSWD, GROUP)
            .map(|user| (user.uid, user.gid, user.groups, user.home))
            .map_err(|error| error.message)
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(find("app").unwrap(), (1000, 1001, vec![10, 44, 1001], "/home/app".into()));
        assert_eq!(find("1000").unwrap(), (1000, 1001, vec![10, 44, 1001], "/home/app".into()));
        assert_eq!(find("root").unwrap(), (0, 0, vec![10, 0], "/root".into()));
        assert_eq!(find("5000").unwrap(), (5000, 0, vec![0], "/".into()));
        assert_eq!(find("5000:6000").unwrap(), (5000, 6000, vec![6000], "/".into()));
        assert_eq!(find("app:video").unwrap(), (1000, 44, vec![44], "/home/app".into()));
        assert_eq!(find("bare").unwrap(), (7, 7, vec![7], "/".into()));
        // As with docker, a name comes before a number.
        assert_eq!(find("8").unwrap(), (9, 9, vec![9], "/nine".into()));
    }

    #[test]
    fn what_the_image_does_not_know() {
        assert_eq!(find("nobody").unwrap_err(), r#"user "nobody" is not in the image's /etc/passwd"#);
        assert_eq!(find("app:staff").unwrap_err(), r#"group "staff" is not in the image's /etc/group"#);
        for spec in ["", ":", "-1", "4294967295", "4294967296", "root:4294967295", "app:"] {
            find(spec).unwrap_err();
        }
    }

    #[test]
    fn a_file_is_read_whole_up_to_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        let read_back = |content: &[u8]| {
            let path = directory.path().join("file");
            std::fs::write(&path, content).unwrap();
            read(&std::ffi::CString::new(path.to_str().unwrap()).unwrap())
        };
        for length in [0, 1, USUAL_FILE - 1, USUAL_FILE, USUAL_FILE + 1, 100_000, MAX_FILE] {
            let content: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
            assert!(read_back(&content).as_bytes() == content, "{length}");
        }
        assert_eq!(read_back(&vec![b'x'; MAX_FILE + 10]).len(), MAX_FILE);
        assert_eq!(read_back(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(read(c"/nonexistent"), "");
    }

    #[test]
    fn an_image_without_accounts_has_root() {
        let user = User::find_in("root:root", "", "").unwrap();
        assert_eq!(user, User { uid: 0, gid: 0, groups: vec![0], home: "/".into() });
    }
}
