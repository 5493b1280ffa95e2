//! What is there: one file, a directory, or what is below one.

use super::{MAX_PATH, absolute, wrong};
use crate::refusal;
use crate::stream::{Stream, StreamError};
use protocol::{CHUNK, Error, ErrorCode, FileInfo, FileKind, FrameType, encode};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How deep a search goes: each level keeps two descriptors.
pub(super) const MAX_DEPTH: usize = 512;

/// What stands at `path`, through symlinks.
pub(super) fn stat(path: &Path) -> Result<FileInfo, Error> {
    let stat = rustix::fs::stat(path).map_err(|errno| wrong(path, errno))?;
    Ok(info(path.components().as_path(), &stat, None))
}

/// A file as the protocol has it.
pub(super) fn info(path: &Path, stat: &Stat, target: Option<String>) -> FileInfo {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    FileInfo {
        path: path.to_string_lossy().into_owned(),
        kind,
        is_dir: kind == FileKind::Directory,
        size: stat.st_size.cast_unsigned(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_ms: seconds.saturating_mul(1000).saturating_add(stat.st_mtime_nsec / 1_000_000),
        target,
    }
}

/// Sends what is in a directory.
pub(super) fn list(stream: &Stream, path: &str) -> Result<(), StreamError> {
    let opened = absolute(path).and_then(|path| open(path).map_err(|errno| wrong(path, errno)));
    let (mut directory, fd) = match opened {
        Ok(opened) => opened,
        Err(error) => return stream.message(&error),
    };
    let path = Path::new(path).components().as_path();
    let mut answer = Answer { stream, frames: Vec::new() };
    while let Some(entry) = directory.read() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) => return answer.failed(&wrong(path, errno)),
        };
        let name = entry.file_name();
        // One that was removed in the meantime is not there.
        if !is_dots(name)
            && let Some(info) = entry_of(&fd, name, path)
        {
            answer.push(&info)?;
        }
    }
    answer.done()
}

struct Level {
    directory: Dir,
    fd: OwnedFd,
    path: PathBuf,
}

/// Sends what is below a directory and has a name like `pattern`.
pub(super) fn search(stream: &Stream, path: &str, pattern: &str) -> Result<(), StreamError> {
    let first = absolute(path).and_then(|path| {
        let stat = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
        let opened = open(path).and_then(|(directory, fd)| Ok((stat(&fd)?, directory, fd)));
        opened.map_err(|errno| wrong(path, errno))
    });
    let pattern = CString::new(pattern)
        .map_err(|_| refusal(ErrorCode::BadRequest, format!("pattern {pattern:?}: has a NUL byte in it")));
    let ((device, directory, fd), pattern) = match (first, pattern) {
        (Ok(first), Ok(pattern)) => (first, pattern),
        (Err(error), _) | (_, Err(error)) => return stream.message(&error),
    };
    let path = Path::new(path).components().as_path().to_owned();
    let mut levels = vec![Level { directory, fd, path }];
    let mut answer = Answer { stream, frames: Vec::new() };
    while let Some(level) = levels.last_mut() {
        let Some(Ok(entry)) = level.directory.read() else {
            levels.pop();
            stream.check()?;
            continue;
        };
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        if matches(&pattern, name)
            && let Some(info) = entry_of(&level.fd, name, &level.path)
        {
            answer.push(&info)?;
        }
        let may_be_one = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if may_be_one
            && levels.len() < MAX_DEPTH
            && let Some(level) = enter(&levels[levels.len() - 1], name, device)
        {
            levels.push(level);
        }
    }
    answer.done()
}

/// A subdirectory of the same file system; what cannot be read is left out.
fn enter(level: &Level, name: &CStr, device: u64) -> Option<Level> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&level.fd, name, flags, Mode::empty()).ok()?;
    let same = rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_dev == device);
    let directory = Dir::read_from(&fd).ok().filter(|_| same)?;
    Some(Level { directory, fd, path: level.path.join(OsStr::from_bytes(name.to_bytes())) })
}

fn open(path: &Path) -> Result<(Dir, OwnedFd), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    Ok((Dir::read_from(&fd)?, fd))
}

pub(super) fn is_dots(name: &CStr) -> bool {
    name == c"." || name == c".."
}

/// An entry of a directory, itself.
fn entry_of(directory: &OwnedFd, name: &CStr, path: &Path) -> Option<FileInfo> {
    let path = path.join(OsStr::from_bytes(name.to_bytes()));
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    // What no call takes is of no use.
    if path.as_os_str().len() >= MAX_PATH {
        return None;
    }
    let mut info = info(&path, &stat, None);
    if info.kind == FileKind::Symlink {
        let target = rustix::fs::readlinkat(directory.as_fd(), name, Vec::new()).ok()?;
        info.target = Some(target.to_string_lossy().into_owned());
        let leads_to = rustix::fs::statat(directory, name, AtFlags::empty());
        info.is_dir = leads_to.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
    }
    Some(info)
}

/// Whether the pattern matches the whole name, as `find -name` has it.
fn matches(pattern: &CStr, name: &CStr) -> bool {
    // SAFETY: both are strings that end with a NUL, and are only read.
    unsafe { libc::fnmatch(pattern.as_ptr(), name.as_ptr(), 0) == 0 }
}

/// Entries on their way, some in each packet.
struct Answer<'a> {
    stream: &'a Stream,
    frames: Vec<u8>,
}

impl Answer<'_> {
    fn push(&mut self, info: &FileInfo) -> Result<(), StreamError> {
        self.frames.extend_from_slice(&encode(info)?);
        if self.frames.len() >= CHUNK / 2 {
            self.stream.send(&self.frames)?;
            self.frames.clear();
        }
        Ok(())
    }

    fn done(&self) -> Result<(), StreamError> {
        self.stream.send(&self.frames)?;
        self.stream.mark(FrameType::Done)
    }

    fn failed(&self, error: &Error) -> Result<(), StreamError> {
        self.stream.send(&self.frames)?;
        self.stream.message(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            (c"*.py", c"a.py", true),
            (c"*.py", c".py", true),
            (c"*.py", c"a.pyc", false),
            (c"a?[0-9]", c"ab7", true),
            (c"a\\*", c"a*", true),
            (c"a\\*", c"ab", false),
            (c"*", c"a\nb", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern:?} {name:?}");
        }
    }
}
