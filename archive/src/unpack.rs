//! A tar stream, unpacked beneath a directory.
//!
//! Names are resolved by openat2(2) with RESOLVE_BENEATH: whatever symlinks the archive makes or the directory has, an entry that
//! would leave the directory is an error; where the receiver has named what comes, one that would leave that. Files, links and symlinks are made under another name and renamed, so that nobody sees half of one.

use crate::tar::{Entry, Kind, Reader};
use crate::{Error, file_error};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const PIECE: usize = 64 << 10;

/// How often openat2 may say that the tree changed under it.
const ATTEMPTS: usize = 32;

/// Of directories that no entry describes.
const DIRECTORY_MODE: u32 = 0o755;

/// Where a stream goes.
#[derive(Clone, Copy, Debug)]
pub struct Unpack<'a> {
    /// The directory. It is made if it is missing, with its parents.
    pub path: &'a Path,
    /// Who owns what is made, by uid and gid; without one whoever unpacks.
    pub owner: Option<(u32, u32)>,
    /// What stands in place of the first component of every path, one component or empty for the directory itself: whoever
    /// sends a stream then has no say in that, and nothing beside it is touched. Without one the paths are taken as they are.
    pub name: Option<&'a Path>,
    /// The permission bits that are kept.
    pub modes: u32,
}

/// Unpacks `data` beneath a directory.
///
/// No entry leaves it, whatever symlinks say. Files appear under their names when they are whole. Modes and the times of files are
/// kept; owners are not.
pub fn unpack(data: &mut dyn Read, to: &Unpack<'_>) -> Result<(), Error> {
    let owner = to.owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid)));
    let root = make_directory(to.path, to.owner)?;
    let target = Target { root, path: to.path.into(), owner, name: to.name, modes: to.modes };
    let mut archive = Reader::new(data);
    while let Some(entry) = archive.next()? {
        target.unpack(&entry, &mut archive)?;
    }
    Ok(())
}

type Owner = Option<(Uid, Gid)>;

/// Makes a directory and those above it, where they are missing, and opens it. What is made belongs to `owner`, by uid and gid.
pub fn make_directory(path: &Path, owner: Option<(u32, u32)>) -> Result<OwnedFd, Error> {
    let error = |errno| file_error(path, errno);
    let mut made = PathBuf::new();
    for component in path.components() {
        made.push(component);
        match rustix::fs::mkdir(&made, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) => {
                if let Some((uid, gid)) = owner {
                    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                    rustix::fs::chown(&made, Some(uid), Some(gid)).map_err(error)?;
                }
            }
            // A link to nothing, or to a file, is found below.
            Err(Errno::EXIST | Errno::ISDIR) => (),
            Err(errno) => return Err(error(errno)),
        }
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(error)
}

struct Target<'a> {
    root: OwnedFd,
    path: PathBuf,
    owner: Owner,
    name: Option<&'a Path>,
    modes: u32,
}

impl Target<'_> {
    fn unpack(&self, entry: &Entry, archive: &mut Reader<&mut dyn Read>) -> Result<(), Error> {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let error = |errno| self.error(path, errno);
        let Some((directory, name)) = self.split(path)? else { return Ok(()) };
        if entry.kind == Kind::Directory {
            return self.directory(&directory, name, entry.mode).map_err(error);
        }
        let temporary = Temporary::new(directory.as_fd());
        match entry.kind {
            Kind::File => self.file(&temporary, entry, archive)?,
            Kind::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &directory, &temporary.name)
                    .map_err(error)?;
                self.own_link(&temporary).map_err(error)?;
            }
            Kind::HardLink | Kind::Directory => {
                let link = Path::new(OsStr::from_bytes(&entry.link));
                let (from, name) = self.split(link)?.ok_or_else(|| self.error(link, Errno::ISDIR))?;
                rustix::fs::linkat(&from, name, &directory, &temporary.name, AtFlags::empty())
                    .map_err(|errno| self.error(link, errno))?;
            }
        }
        rustix::fs::renameat(&directory, &temporary.name, &directory, name).map_err(error)
    }

    /// The directory that holds `path`, made if it is missing, and the last name. `None` for the root itself.
    fn split<'a>(&'a self, path: &'a Path) -> Result<Option<(OwnedFd, &'a OsStr)>, Error> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name),
                // As tar does: an absolute path begins at the directory.
                Component::RootDir | Component::CurDir => (),
                Component::ParentDir | Component::Prefix(_) => {
                    let message = format!("{}: {} leaves the directory", self.path.display(), path.display());
                    return Err(Error::Leaves(message));
                }
            }
        }
        let mut base = None;
        if let Some(name) = self.name {
            // A "." at the beginning counts, as in what `tar c .` writes.
            let first = usize::from(path.components().next() != Some(Component::CurDir));
            names = names.split_off(first.min(names.len()));
            if !name.as_os_str().is_empty() {
                if names.is_empty() {
                    names.push(name.as_os_str());
                } else {
                    base = Some(self.named(name).map_err(|errno| self.error(path, errno))?);
                }
            }
        }
        let base = base.as_ref().unwrap_or(&self.root);
        let Some(last) = names.pop() else { return Ok(None) };
        let mut parent = PathBuf::from(".");
        parent.extend(&names);
        match open_beneath(base, &parent) {
            Err(Errno::NOENT) => {
                let error = |errno| self.error(path, errno);
                let mut directory = open_beneath(base, Path::new(".")).map_err(error)?;
                parent = PathBuf::from(".");
                for name in names {
                    self.directory(&directory, name, DIRECTORY_MODE).map_err(error)?;
                    parent.push(name);
                    directory = open_beneath(base, &parent).map_err(error)?;
                }
                Ok(Some((directory, last)))
            }
            other => other.map(|directory| Some((directory, last))).map_err(|errno| self.error(path, errno)),
        }
    }

    /// What stands in place of the first component, as a directory: it is what entries stay beneath, not the directory that it
    /// is in. So it is no symlink, which an entry, or one that came before, may have made.
    fn named(&self, name: &Path) -> Result<OwnedFd, Errno> {
        match rustix::fs::mkdirat(&self.root, name, Mode::RWXU) {
            Ok(()) => {
                let new = open_here(&self.root, name, OFlags::RDONLY)?;
                self.set(&new, DIRECTORY_MODE)?;
            }
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
                    return Err(Errno::XDEV);
                }
            }
            Err(errno) => return Err(errno),
        }
        open_here(&self.root, name, OFlags::PATH)
    }

    /// Makes a directory, unless it is there already: then it stays as it is.
    fn directory(&self, parent: &OwnedFd, name: &OsStr, mode: u32) -> Result<(), Errno> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, name, AtFlags::empty())?;
                let directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
                return if directory { Ok(()) } else { Err(Errno::NOTDIR) };
            }
            other => other?,
        }
        self.set(&open_here(parent, Path::new(name), OFlags::RDONLY)?, mode)
    }

    fn file(
        &self,
        temporary: &Temporary<'_>,
        entry: &Entry,
        archive: &mut Reader<&mut dyn Read>,
    ) -> Result<(), Error> {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let error = |errno| self.error(path, errno);
        let file = temporary.file().map_err(error)?;
        let mut piece = vec![0; PIECE];
        loop {
            match archive.read(&mut piece)? {
                0 => break,
                count => write(&file, &piece[..count]).map_err(error)?,
            }
        }
        self.set(&file, entry.mode).map_err(error)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: entry.mtime.cast_signed(), tv_nsec: 0 },
        };
        rustix::fs::futimens(&file, &times).map_err(error)
    }

    /// The owner first: a change of it takes set-user-ID away.
    fn set(&self, file: &OwnedFd, mode: u32) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & self.modes))
    }

    fn own_link(&self, link: &Temporary<'_>) -> Result<(), Errno> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        rustix::fs::chownat(link.directory, &link.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn error(&self, path: &Path, errno: Errno) -> Error {
        let path = self.path.join(path.strip_prefix("/").unwrap_or(path));
        if errno == Errno::XDEV {
            let message = format!(
                "{}: a symlink on the way leaves the directory {}",
                path.display(),
                self.path.display()
            );
            return Error::Leaves(message);
        }
        file_error(&path, errno)
    }
}

/// Opens the directory of that name, and not what a symlink leads to.
fn open_here(parent: &OwnedFd, name: &Path, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a directory, wherever symlinks lead, but beneath the root.
fn open_beneath(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS {
        result = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve);
        if result.as_ref().err() != Some(&Errno::AGAIN) {
            break;
        }
    }
    result
}

/// A name for what is not whole yet; removed if it is still there in the end.
#[derive(Debug)]
pub struct Temporary<'a> {
    directory: BorrowedFd<'a>,
    name: String,
}

impl<'a> Temporary<'a> {
    /// A name in `directory` that nobody else has.
    pub fn new(directory: BorrowedFd<'a>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(".voidrun-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // From a machine that was killed on the way.
        let _ = rustix::fs::unlinkat(directory, &name, AtFlags::empty());
        Self { directory, name }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An empty file of this name, which nobody else may open.
    pub fn file(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.directory, &self.name, flags, Mode::RUSR | Mode::WUSR)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // A rename of a hard link onto the same file leaves both names (rename(2)).
        let _ = rustix::fs::unlinkat(self.directory, &self.name, AtFlags::empty());
    }
}

/// Writes all of `bytes`.
pub fn write(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = &bytes[count..];
    }
    Ok(())
}
