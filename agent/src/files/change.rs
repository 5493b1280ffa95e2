//! Files made, moved, copied and removed where they are.
//!
//! Trees are walked without recursion: how deep they are is the guest's choice, and a thread's stack is small.

use super::look::{MAX_DEPTH, is_dots};
use super::{absolute, of_archive, owner_of, wrong, wrong_as};
use crate::refusal;
use crate::stream::Stream;
use archive::Temporary;
use protocol::{Error, ErrorCode};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// After so many bytes of a copy it is asked whether the host still wants it.
const STRETCH: u64 = 64 << 20;

pub(super) fn mkdir(path: &str, owner: Option<&str>) -> Result<(), Error> {
    let (path, owner) = (absolute(path)?, owner_of(owner)?);
    match archive::make_directory(path, owner) {
        Ok(_) => Ok(()),
        // What is there is something else.
        Err(archive::Error::File { errno: Errno::NOTDIR, .. }) if rustix::fs::lstat(path).is_ok() => {
            Err(wrong(path, Errno::EXIST))
        }
        Err(error) => Err(of_archive(error)),
    }
}

pub(super) fn chmod(path: &str, mode: u32) -> Result<(), Error> {
    let path = absolute(path)?;
    if mode > 0o7777 {
        return Err(refusal(ErrorCode::BadRequest, format!("mode {mode:o}: more than 7777")));
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(|errno| wrong(path, errno))
}

pub(super) fn rename(stream: &Stream, from: &str, to: &str) -> Result<(), Error> {
    let (source, target) = (Place::of(from)?, Place::of(to)?);
    target.is_free()?;
    match rustix::fs::renameat(&source.parent, source.name, &target.parent, target.name) {
        // To another file system.
        Err(Errno::XDEV) => {
            copy(stream, from, to)?;
            delete(stream, from)
        }
        Err(errno @ Errno::NOENT) => Err(wrong(source.path, errno)),
        Err(Errno::INVAL) => Err(wrong_as(target.path, Errno::INVAL, "is inside of what is to be moved")),
        other => other.map_err(|errno| wrong(target.path, errno)),
    }
}

pub(super) fn copy(stream: &Stream, from: &str, to: &str) -> Result<(), Error> {
    let (source, target) = (Place::of(from)?, Place::of(to)?);
    let stat = source.stat().map_err(|errno| wrong(source.path, errno))?;
    target.is_free()?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() && target.is_within(source.path) {
        return Err(wrong_as(target.path, Errno::INVAL, "is inside of what is to be copied"));
    }
    let temporary = Temporary::new(target.parent.as_fd());
    let name = CString::new(temporary.name()).unwrap_or_default();
    let mut walk = Copy { stream, path: source.path, levels: Vec::new() };
    let copied = walk
        .entry(source.parent.as_fd(), &c_name(source.name), target.parent.as_fd(), &name, &stat)
        .and_then(|()| walk.descend())
        .and_then(|()| {
            rustix::fs::renameat(&target.parent, &*name, &target.parent, target.name)
                .map_err(|errno| wrong(target.path, errno))
        });
    if copied.is_err() {
        // Also when the host has gone: nothing half-made stays.
        let _ = remove(target.parent.as_fd(), &name, &mut || Ok(()));
    }
    copied
}

pub(super) fn delete(stream: &Stream, path: &str) -> Result<(), Error> {
    let place = Place::of(path)?;
    remove(place.parent.as_fd(), &c_name(place.name), &mut || still_wanted(stream))
        .map_err(|errno| wrong(place.path, errno))
}

fn still_wanted(stream: &Stream) -> Result<(), Errno> {
    stream.check().map_err(|_| Errno::CANCELED)
}

fn c_name(name: &OsStr) -> CString {
    // A path with a NUL in it was refused.
    CString::new(name.as_bytes()).unwrap_or_default()
}

/// A name in a directory.
struct Place<'a> {
    path: &'a Path,
    parent: OwnedFd,
    name: &'a OsStr,
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Result<Self, Error> {
        let path = absolute(path)?.components().as_path();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(wrong_as(path, Errno::BUSY, "has no name that could be another's or nobody's"));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent =
            rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(|errno| wrong(path, errno))?;
        Ok(Self { path, parent, name })
    }

    fn stat(&self) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether something can get this name; a file that has it is replaced.
    fn is_free(&self) -> Result<(), Error> {
        match self.stat() {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                Err(wrong_as(self.path, Errno::EXIST, "is a directory: the whole new path is wanted"))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(wrong(self.path, errno)),
        }
    }

    fn is_within(&self, directory: &Path) -> bool {
        let real = |path: &Path| std::fs::canonicalize(path);
        match (self.path.parent().map(real), real(directory)) {
            (Some(Ok(parent)), Ok(directory)) => parent.starts_with(directory),
            _ => false,
        }
    }
}

/// A directory that is being copied.
struct Level {
    directory: Dir,
    from: OwnedFd,
    to: OwnedFd,
    stat: Stat,
}

struct Copy<'a> {
    stream: &'a Stream,
    /// For errors.
    path: &'a Path,
    levels: Vec<Level>,
}

impl Copy<'_> {
    fn error(&self, errno: Errno) -> Error {
        wrong(self.path, errno)
    }

    fn descend(&mut self) -> Result<(), Error> {
        while let Some(level) = self.levels.last_mut() {
            let Some(entry) = level.directory.read() else {
                // Last: the mode may forbid, and the time would change.
                keep(&level.to, &level.stat).map_err(|errno| self.error(errno))?;
                self.levels.pop();
                continue;
            };
            let entry = entry.map_err(|errno| wrong(self.path, errno))?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let again = |fd: &OwnedFd| fd.try_clone().map_err(|_| wrong(self.path, Errno::MFILE));
            let (from, to) = (again(&level.from)?, again(&level.to)?);
            match rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.entry(from.as_fd(), name, to.as_fd(), name, &stat)?,
                // It was removed in the meantime.
                Err(Errno::NOENT) => (),
                Err(errno) => return Err(self.error(errno)),
            }
        }
        Ok(())
    }

    /// Copies one entry; a directory's content is left to come. Sockets, pipes and devices are left out.
    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        name: &CStr,
        to: BorrowedFd<'_>,
        new: &CStr,
        stat: &Stat,
    ) -> Result<(), Error> {
        let error = |errno| wrong(self.path, errno);
        still_wanted(self.stream).map_err(error)?;
        let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let source = rustix::fs::openat(from, name, open, Mode::empty()).map_err(error)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to, new, flags, Mode::RUSR | Mode::WUSR).map_err(error)?;
                let (source, target) = (File::from(source), File::from(target));
                self.content(&source, &target)?;
                keep(&target, stat).map_err(error)
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new()).map_err(error)?;
                rustix::fs::symlinkat(&*link, to, new).map_err(error)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                rustix::fs::chownat(to, new, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(error)
            }
            FileType::Directory => {
                if self.levels.len() == MAX_DEPTH {
                    return Err(error(Errno::NAMETOOLONG));
                }
                let open = open | OFlags::DIRECTORY;
                let from = rustix::fs::openat(from, name, open, Mode::empty()).map_err(error)?;
                rustix::fs::mkdirat(to, new, Mode::RWXU).map_err(error)?;
                let to = rustix::fs::openat(to, new, open, Mode::empty()).map_err(error)?;
                let directory = Dir::read_from(&from).map_err(error)?;
                self.levels.push(Level { directory, from, to, stat: *stat });
                Ok(())
            }
            _ if self.levels.is_empty() => {
                Err(wrong_as(self.path, Errno::INVAL, "neither a file, a directory nor a symlink"))
            }
            _ => Ok(()),
        }
    }

    fn content(&self, source: &File, mut target: &File) -> Result<(), Error> {
        loop {
            // Within the kernel, where the file systems can.
            match std::io::copy(&mut source.take(STRETCH), &mut target) {
                Ok(0) => return Ok(()),
                Ok(_) => still_wanted(self.stream).map_err(|errno| self.error(errno))?,
                Err(error) => {
                    return Err(self.error(super::content::of_io(&error)));
                }
            }
        }
    }
}

/// Gives a copy the owner, the mode and the time of `stat`. The owner first: a change of it takes set-user-ID away.
fn keep(file: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
}

/// A directory that is being removed.
struct Doomed {
    directory: Dir,
    fd: OwnedFd,
    name: CString,
}

/// Removes a file, or a directory with what is in it.
fn remove(
    parent: BorrowedFd<'_>,
    name: &CStr,
    go_on: &mut dyn FnMut() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut levels: Vec<Doomed> = Vec::new();
    if let Some(level) = unlink(parent, name)? {
        levels.push(level);
    }
    while let Some(level) = levels.last_mut() {
        if let Some(entry) = level.directory.read() {
            let entry = entry?;
            if is_dots(entry.file_name()) {
                continue;
            }
            go_on()?;
            let below = match unlink(level.fd.as_fd(), entry.file_name()) {
                // Somebody else was faster.
                Err(Errno::NOENT) => None,
                other => other?,
            };
            if below.is_some() && levels.len() == MAX_DEPTH {
                return Err(Errno::NAMETOOLONG);
            }
            levels.extend(below);
            continue;
        }
        let Some(done) = levels.pop() else { break };
        let above = levels.last().map_or(parent, |level| level.fd.as_fd());
        rustix::fs::unlinkat(above, &*done.name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Removes what is not a directory; a directory is opened.
fn unlink(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<Doomed>, Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(errno @ (Errno::ISDIR | Errno::PERM)) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(parent, name, flags, Mode::empty())
                // A file that may not be removed.
                .map_err(|opening| if opening == Errno::NOTDIR { errno } else { opening })?;
            Ok(Some(Doomed { directory: Dir::read_from(&fd)?, fd, name: name.to_owned() }))
        }
        other => other.map(|()| None),
    }
}
