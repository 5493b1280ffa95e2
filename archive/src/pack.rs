//! A file or a tree, as a tar stream. Sockets, devices and pipes are left out.

use crate::tar::{BLOCK, Entry, Kind, header};
use crate::{Error, file_error};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PIECE: usize = 64 << 10;

/// How deep a tree may be: each level keeps a descriptor.
const MAX_DEPTH: usize = 1024;

/// What is to be packed.
#[derive(Clone, Copy, Debug)]
pub struct Pack<'a> {
    /// The file or directory.
    pub path: &'a Path,
    /// What the entries' paths begin with; without one the last component of the path.
    pub name: Option<&'a OsStr>,
    /// If the path itself is a symlink, to take what it points to.
    pub follow: bool,
}

/// A directory whose entries are being sent.
struct Level {
    directory: Dir,
    fd: OwnedFd,
    /// Of its name in the archive.
    length: usize,
}

/// Writes what is at a path.
pub fn pack(data: &mut dyn Write, what: &Pack<'_>) -> Result<(), Error> {
    // Without the slash at its end, which would follow a symlink.
    let file = what.path.components().as_path();
    // The name as it is asked for, not where it leads; / and paths that end with .. have none.
    let name = what.name.or(file.file_name()).map_or(&b"."[..], OsStr::as_bytes);
    let mut packer = Packer { data, request: file, levels: Vec::new(), name: name.to_vec() };
    packer.add(CWD, file, what.follow)?;
    packer.descend()?;
    packer.write(&[0; 2 * BLOCK])
}

struct Packer<'a> {
    data: &'a mut dyn Write,
    /// The path of the first entry.
    request: &'a Path,
    levels: Vec<Level>,
    /// Of the entry at hand, in the archive.
    name: Vec<u8>,
}

impl Packer<'_> {
    fn descend(&mut self) -> Result<(), Error> {
        while let Some(level) = self.levels.last_mut() {
            self.name.truncate(level.length);
            let entry = match level.directory.read() {
                None => {
                    self.levels.pop();
                    continue;
                }
                Some(Err(errno)) => return Err(self.error(errno)),
                Some(Ok(entry)) => entry,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.name.push(b'/');
            self.name.extend_from_slice(name.to_bytes());
            let directory = level.fd.try_clone().map_err(|_| self.error(Errno::MFILE))?;
            match self.add(directory.as_fd(), name, false) {
                // It was removed in the meantime.
                Err(Error::File { errno: Errno::NOENT, .. }) => (),
                result => result?,
            }
        }
        Ok(())
    }

    /// Writes one entry; a directory's content is left to come.
    fn add(
        &mut self,
        parent: impl AsFd,
        file: impl rustix::path::Arg + Copy,
        follow: bool,
    ) -> Result<(), Error> {
        let at = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = rustix::fs::statat(&parent, file, at).map_err(|errno| self.error(errno))?;
        let mut open = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        open.set(OFlags::NOFOLLOW, !follow);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let link =
                    rustix::fs::readlinkat(&parent, file, Vec::new()).map_err(|errno| self.error(errno))?;
                self.header(Kind::Symlink, &stat, link.as_c_str(), 0)
            }
            FileType::Directory => {
                let fd = rustix::fs::openat(&parent, file, open | OFlags::DIRECTORY, Mode::empty())
                    .map_err(|errno| self.error(errno))?;
                self.enter(fd, &stat)
            }
            FileType::RegularFile => {
                let fd = rustix::fs::openat(&parent, file, open, Mode::empty())
                    .map_err(|errno| self.error(errno))?;
                // It may be another by now.
                let stat = rustix::fs::fstat(&fd).map_err(|errno| self.error(errno))?;
                if FileType::from_raw_mode(stat.st_mode).is_file() {
                    self.content(&fd, &stat)
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    fn enter(&mut self, fd: OwnedFd, stat: &Stat) -> Result<(), Error> {
        if self.levels.len() == MAX_DEPTH {
            return Err(self.error(Errno::NAMETOOLONG));
        }
        let length = self.name.len();
        self.name.push(b'/');
        self.header(Kind::Directory, stat, c"", 0)?;
        let directory = Dir::read_from(&fd).map_err(|errno| self.error(errno))?;
        self.levels.push(Level { directory, fd, length });
        Ok(())
    }

    fn content(&mut self, file: &OwnedFd, stat: &Stat) -> Result<(), Error> {
        let size = stat.st_size.cast_unsigned();
        self.header(Kind::File, stat, c"", size)?;
        let mut piece = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let most = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let mut count = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut piece[..most]))
                .map_err(|errno| self.error(errno))?;
            if count == 0 {
                // It has become shorter; the archive has said its size already.
                piece.fill(0);
                count = most;
            }
            self.write(&piece[..count])?;
            left -= count as u64;
        }
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.write(&[0; BLOCK][..padding as usize])
    }

    fn header(&mut self, kind: Kind, stat: &Stat, link: &CStr, size: u64) -> Result<(), Error> {
        let entry = Entry {
            kind,
            path: self.name.clone(),
            link: link.to_bytes().to_vec(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
            size,
        };
        self.write(&header(&entry))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.data.write_all(bytes).map_err(Error::Write)
    }

    fn error(&self, errno: Errno) -> Error {
        let below = self.name.splitn(2, |&byte| byte == b'/').nth(1).unwrap_or_default();
        let path = self.request.join(OsStr::from_bytes(below));
        file_error(&path, errno)
    }
}
