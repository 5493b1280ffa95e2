//! Files in and out: trees as tar streams, single files as they are, and what can be done with them in their places. All of it
//! is done as root, wherever the guest's symlinks lead; what is made belongs to whom the host says.

mod change;
mod content;
mod data;
mod look;
mod watch;

use crate::stream::{Stream, StreamError};
use crate::user::User;
use crate::{failure, refusal};
use archive::{Pack, Unpack};
use data::{DataReader, DataWriter};
use protocol::{Error, ErrorCode, FileRequest, FrameType};
use rustix::io::Errno;
use std::path::Path;

/// The longest path that the kernel takes, with the NUL at its end.
const MAX_PATH: usize = 4096;

/// Carries out an Upload request.
pub(crate) fn upload(stream: &mut Stream, path: &str, owner: Option<&str>) -> Result<(), StreamError> {
    receive(stream, |data| {
        let to = Unpack { path: absolute(path)?, owner: owner_of(owner)?, name: None, modes: 0o7777 };
        archive::unpack(data, &to).map_err(of_archive)
    })
}

/// Carries out a Download request.
pub(crate) fn download(stream: &Stream, path: &str, follow: bool) -> Result<(), StreamError> {
    send(stream, |data| {
        let what = Pack { path: absolute(path)?, name: None, follow };
        archive::pack(data, &what).map_err(of_archive)
    })
}

/// Carries out a File request.
pub(crate) fn file(stream: &mut Stream, request: &FileRequest) -> Result<(), StreamError> {
    match request {
        FileRequest::Stat { path } => match absolute(path).and_then(look::stat) {
            Ok(info) => stream.message(&info),
            Err(error) => stream.message(&error),
        },
        FileRequest::List { path } => look::list(stream, path),
        FileRequest::Search { path, pattern } => look::search(stream, path, pattern),
        FileRequest::Mkdir { path, owner } => stream.answer(change::mkdir(path, owner.as_deref())),
        FileRequest::Move { from, to } => stream.answer(change::rename(stream, from, to)),
        FileRequest::Copy { from, to } => stream.answer(change::copy(stream, from, to)),
        FileRequest::Chmod { path, mode } => stream.answer(change::chmod(path, *mode)),
        FileRequest::Delete { path } => stream.answer(change::delete(stream, path)),
        FileRequest::Read { path } => match absolute(path).and_then(content::open) {
            Ok((info, file)) => {
                stream.message(&info)?;
                send(stream, |data| content::read(data, &file, path))
            }
            Err(error) => stream.message(&error),
        },
        FileRequest::Write { path, mode, exclusive, owner } => receive(stream, |data| {
            let to = content::Write {
                path: absolute(path)?,
                mode: *mode,
                exclusive: *exclusive,
                owner: owner_of(owner.as_deref())?,
            };
            content::write(data, &to)
        }),
        FileRequest::Watch { path, recursive, ignore_hidden } => {
            watch::watch(stream, path, *recursive, *ignore_hidden)
        }
    }
}

/// What the host sends goes to `take`; the answer is whether that went well.
fn receive(
    stream: &mut Stream,
    take: impl FnOnce(&mut DataReader<'_>) -> Result<(), Error>,
) -> Result<(), StreamError> {
    let mut data = DataReader::new(stream);
    let result = take(&mut data);
    let ended = data.finish()?;
    stream.answer(result)?;
    // The host may be in the middle of a write, with the answer not read yet: an end of the stream now could take it away.
    while !ended && stream.read(|frame| frame.kind)? == FrameType::Data {}
    Ok(())
}

/// What `give` writes goes to the host, up to its end or an error.
fn send(
    stream: &Stream,
    give: impl FnOnce(&mut DataWriter<'_>) -> Result<(), Error>,
) -> Result<(), StreamError> {
    let mut data = DataWriter::new(stream);
    let result = give(&mut data);
    data.finish()?;
    match result {
        Ok(()) => stream.mark(FrameType::DataEnd),
        Err(error) => stream.message(&error),
    }
}

/// Absolute paths only: there is no directory to start from.
fn absolute(path: &str) -> Result<&Path, Error> {
    if path.len() >= MAX_PATH {
        return Err(refusal(ErrorCode::BadRequest, format!("a path of {} bytes", path.len())));
    }
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(Path::new(path));
    }
    Err(refusal(ErrorCode::BadRequest, format!("path {path:?}: not an absolute path")))
}

fn owner_of(spec: Option<&str>) -> Result<Option<(u32, u32)>, Error> {
    Ok(spec.map(User::find).transpose()?.map(|user| (user.uid, user.gid)))
}

fn of_archive(error: archive::Error) -> Error {
    match error {
        archive::Error::File { path, errno } => failure(ErrorCode::File, path, errno),
        error => refusal(ErrorCode::Archive, crate::serve::with_source(&error)),
    }
}

fn wrong(path: &Path, errno: Errno) -> Error {
    failure(ErrorCode::File, path.display(), errno)
}

/// As [`wrong`], where the system has no good word for it.
fn wrong_as(path: &Path, errno: Errno, why: &str) -> Error {
    let message = format!("{}: {why}", path.display());
    Error { code: ErrorCode::File, message, errno: Some(errno.raw_os_error()) }
}
