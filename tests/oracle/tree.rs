//! A directory tree with everything that `lstat` and its relatives tell.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, lgetxattr, llistxattr};
use rustix::io::Errno;

/// One entry.
pub struct Node {
    pub kind: FileType,
    /// The permission bits, setuid, setgid and sticky.
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    /// Of a file.
    pub size: u64,
    /// Major and minor number, of a device.
    pub device: (u32, u32),
    /// Of a symlink.
    pub target: PathBuf,
    pub xattrs: BTreeMap<CString, Vec<u8>>,
    /// The first path, in order, of all names of this file.
    pub first_name: PathBuf,
    /// What it takes on the disk, in bytes.
    pub allocated: u64,
}

/// A tree by paths relative to its root, which is the empty path.
#[derive(Default)]
pub struct Tree {
    pub root: PathBuf,
    pub nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    /// Reads the tree at `root`. What may not be read (as an ordinary user) is left out below its directory.
    pub fn read(root: &Path) -> Self {
        let mut tree = Self { root: root.into(), nodes: BTreeMap::new() };
        let mut inodes = HashMap::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let full = root.join(&path);
            let metadata = fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            if metadata.is_dir() {
                match fs::read_dir(&full) {
                    Ok(entries) => {
                        pending.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
                    }
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                    Err(error) => panic!("{}: {error}", full.display()),
                }
            }
            inodes.insert(path.clone(), metadata.ino());
            tree.nodes.insert(path, Node::read(&full, &metadata));
        }
        let mut first = HashMap::new();
        for (path, node) in &mut tree.nodes {
            node.first_name.clone_from(first.entry(inodes[path]).or_insert_with(|| path.clone()));
        }
        tree
    }
}

impl Node {
    fn read(path: &Path, metadata: &fs::Metadata) -> Self {
        let kind = FileType::from_raw_mode(metadata.mode());
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        Self {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            size: if metadata.is_file() { metadata.size() } else { 0 },
            device: if is_device {
                (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()))
            } else {
                (0, 0)
            },
            target: if metadata.is_symlink() { fs::read_link(path).unwrap() } else { PathBuf::new() },
            xattrs: xattrs(path),
            first_name: PathBuf::new(),
            allocated: metadata.blocks() * 512,
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<CString, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let length = match llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::ACCESS | Errno::PERM | Errno::NOTSUP) => 0,
        Err(error) => panic!("{}: xattrs: {error}", path.display()),
    };
    names[..length]
        .split_inclusive(|byte| *byte == 0)
        .map(|name| CString::from_vec_with_nul(name.to_vec()).unwrap())
        // The host's own, where it runs SELinux; no part of the image.
        .filter(|name| name.as_bytes() != b"security.selinux")
        .filter_map(|name| {
            let mut value = vec![0; 65_536];
            match lgetxattr(path, &name, value.as_mut_slice()) {
                Ok(length) => value.truncate(length),
                Err(Errno::ACCESS | Errno::PERM) => return None,
                Err(error) => panic!("{}: xattr {}: {error}", path.display(), name.to_string_lossy()),
            }
            Some((name, value))
        })
        .collect()
}

/// The first byte at which two files differ; `None` too where one may not be read.
pub fn first_difference(left: &Path, right: &Path) -> Option<u64> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let (mut left, mut right) = (open(left)?, open(right)?);
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let (read_a, read_b) = (fill(&mut left, &mut a), fill(&mut right, &mut b));
        if a[..read_a] != b[..read_b] {
            let equal = a[..read_a].iter().zip(&b[..read_b]).take_while(|(a, b)| a == b).count();
            return Some(offset + equal as u64);
        }
        if read_a == 0 {
            return None;
        }
        offset += read_a as u64;
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]).unwrap() {
            0 => break,
            read => filled += read,
        }
    }
    filled
}

/// A path for a message, on one line whatever bytes it has.
pub fn shown(path: &Path) -> String {
    let text = path.as_os_str().as_bytes().escape_ascii().to_string();
    if text.len() > 200 {
        format!("/{}...{}", &text[..90], &text[text.len() - 90..])
    } else {
        format!("/{text}")
    }
}
