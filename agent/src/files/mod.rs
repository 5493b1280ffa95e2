//! Files in and out, as tar streams in Data frames.

mod download;
mod tar;
mod unpack;

use crate::refusal;
use crate::stream::{Stream, StreamError};
use protocol::{CHUNK, Error, ErrorCode, FrameType, HEADER, header};
use std::io::Read;

/// Carries out an Upload request.
pub(crate) fn upload(stream: &mut Stream, path: &str, owner: Option<&str>) -> Result<(), StreamError> {
    let mut data = DataReader { stream, piece: Vec::new(), at: 0, ended: false, broken: None };
    let result = unpack::unpack(&mut data, path, owner);
    if let Some(broken) = data.broken.take() {
        return Err(broken);
    }
    let ended = data.ended;
    stream.answer(result)?;
    // The host may be in the middle of a write, with the answer not read yet: an end of the stream now could take it away.
    while !ended && stream.read(|frame| frame.kind)? == FrameType::Data {}
    Ok(())
}

/// Carries out a Download request.
pub(crate) fn download(stream: &Stream, path: &str, follow: bool) -> Result<(), StreamError> {
    let mut data = DataWriter { stream, frame: Vec::with_capacity(HEADER + CHUNK) };
    match download::pack(&mut data, path, follow) {
        Ok(()) => {
            data.flush()?;
            stream.mark(FrameType::DataEnd)
        }
        Err(PackError::Stream(error)) => Err(error),
        Err(PackError::Refused(error)) => stream.message(&error),
    }
}

/// The tar stream that the host sends.
struct DataReader<'a> {
    stream: &'a mut Stream,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
    /// Why no more could be received.
    broken: Option<StreamError>,
}

impl Read for DataReader<'_> {
    fn read(&mut self, space: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.piece.len() && !self.ended {
            let Self { piece, .. } = self;
            let kind = self.stream.read(|frame| {
                piece.clear();
                piece.extend_from_slice(frame.payload);
                frame.kind
            });
            self.at = 0;
            match kind {
                Ok(FrameType::Data) => (),
                Ok(FrameType::DataEnd) => self.ended = true,
                other => {
                    self.ended = true;
                    self.piece.clear();
                    self.broken = Some(other.err().unwrap_or(StreamError::Ended));
                }
            }
        }
        let count = space.len().min(self.piece.len() - self.at);
        space[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Why a tree could not be sent as a whole.
enum PackError {
    Stream(StreamError),
    Refused(Error),
}

impl From<StreamError> for PackError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl From<Error> for PackError {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// The tar stream that the host gets.
struct DataWriter<'a> {
    stream: &'a Stream,
    /// Room for a header, then what is not sent yet.
    frame: Vec<u8>,
}

impl DataWriter<'_> {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            if self.frame.is_empty() {
                self.frame.resize(HEADER, 0);
            }
            let count = bytes.len().min(HEADER + CHUNK - self.frame.len());
            self.frame.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.frame.len() == HEADER + CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        if self.frame.len() > HEADER {
            let length = self.frame.len() - HEADER;
            self.frame[..HEADER].copy_from_slice(&header(FrameType::Data, length));
            self.stream.send(&self.frame)?;
        }
        self.frame.clear();
        Ok(())
    }
}

/// Both ways take absolute paths only: there is no directory to start from.
fn absolute(path: &str) -> Result<(), Error> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(());
    }
    Err(refusal(ErrorCode::BadRequest, format!("path {path:?}: not an absolute path")))
}
