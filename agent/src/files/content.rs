//! The content of one file, out and in.

use super::data::{DataReader, DataWriter};
use super::{look, of_archive, wrong, wrong_as};
use archive::Temporary;
use protocol::{Error, FileInfo, FileKind};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

const PIECE: usize = 64 << 10;

/// Of a file that nobody has said more of.
const FILE_MODE: u32 = 0o644;

/// Opens a file that has a content with an end.
pub(super) fn open(path: &Path) -> Result<(FileInfo, File), Error> {
    // A pipe would wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| wrong(path, errno))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| wrong(path, errno))?;
    let info = look::info(path, &stat, None);
    match info.kind {
        FileKind::File => Ok((info, file.into())),
        FileKind::Directory => Err(wrong(path, Errno::ISDIR)),
        _ => Err(wrong_as(path, Errno::INVAL, "not a regular file")),
    }
}

/// Sends what is in `file`, whose path is `path`.
pub(super) fn read(data: &mut DataWriter<'_>, mut file: &File, path: &str) -> Result<(), Error> {
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            // Why it cannot be sent tells the stream itself.
            Ok(count) if data.write_all(&piece[..count]).is_err() => return Ok(()),
            Ok(_) => (),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(wrong(Path::new(path), of_io(&error))),
        }
    }
}

/// What is to be written.
pub(super) struct Write<'a> {
    pub(super) path: &'a Path,
    pub(super) mode: Option<u32>,
    pub(super) exclusive: bool,
    pub(super) owner: Option<(u32, u32)>,
}

/// Makes a file of what the host sends.
pub(super) fn write(data: &mut DataReader<'_>, to: &Write<'_>) -> Result<(), Error> {
    let path = leads_to(to.path);
    let error = |errno| wrong(&path, errno);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(error(Errno::ISDIR));
    };
    if to.path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(wrong_as(to.path, Errno::ISDIR, "a file's path does not end with /"));
    }
    let parent = archive::make_directory(parent, to.owner).map_err(of_archive)?;
    let there = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) if to.exclusive => return Err(error(Errno::EXIST)),
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(error(errno)),
    };
    match there.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        // A symlink that leads nowhere is replaced.
        None | Some(FileType::RegularFile | FileType::Symlink) => (),
        Some(FileType::Directory) => return Err(error(Errno::ISDIR)),
        Some(_) => return Err(wrong_as(&path, Errno::INVAL, "not a regular file")),
    }
    let there = there.filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file());

    let temporary = Temporary::new(parent.as_fd());
    let file = temporary.file().map_err(error)?;
    let mut piece = vec![0; PIECE];
    loop {
        match data.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => archive::write(&file, &piece[..count]).map_err(error)?,
            // The stream itself tells why.
            Err(_) => return Err(error(Errno::CONNABORTED)),
        }
    }
    // The owner first: a change of it takes set-user-ID away.
    if let Some((uid, gid)) = there.map(|stat| (stat.st_uid, stat.st_gid)).or(to.owner) {
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(error)?;
    }
    let mode = to.mode.or(there.map(|stat| stat.st_mode)).unwrap_or(FILE_MODE);
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777)).map_err(error)?;
    let replace = if to.exclusive { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
    rustix::fs::renameat_with(&parent, temporary.name(), &parent, name, replace).map_err(error)
}

/// The file that a write is to change: where symlinks lead, if they do.
fn leads_to(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The number of an error of the standard library.
pub(super) fn of_io(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
