//! Data frames as a reader and a writer.

use crate::stream::{Stream, StreamError};
use protocol::{CHUNK, FrameType, HEADER, header};
use std::io::{self, Read, Write};

/// What the host sends, up to DataEnd.
pub(super) struct DataReader<'a> {
    stream: &'a mut Stream,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
    /// Why no more could be received.
    broken: Option<StreamError>,
}

impl<'a> DataReader<'a> {
    pub(super) const fn new(stream: &'a mut Stream) -> Self {
        Self { stream, piece: Vec::new(), at: 0, ended: false, broken: None }
    }

    /// Whether all of it was read; an error if the stream has broken.
    pub(super) fn finish(self) -> Result<bool, StreamError> {
        self.broken.map_or(Ok(self.ended), Err)
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
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
                    self.piece.clear();
                    self.broken = Some(other.err().unwrap_or(StreamError::Ended));
                    // Not an end: what was read is not the whole.
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
        }
        let count = space.len().min(self.piece.len() - self.at);
        space[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// What the host gets.
pub(super) struct DataWriter<'a> {
    stream: &'a Stream,
    /// Room for a header, then what is not sent yet.
    frame: Vec<u8>,
    /// Why no more could be sent.
    broken: Option<StreamError>,
}

impl<'a> DataWriter<'a> {
    pub(super) fn new(stream: &'a Stream) -> Self {
        Self { stream, frame: Vec::with_capacity(HEADER + CHUNK), broken: None }
    }

    /// Sends what is left.
    pub(super) fn finish(mut self) -> Result<(), StreamError> {
        if self.broken.is_none() && self.flush().is_ok() {
            return Ok(());
        }
        self.broken.map_or(Ok(()), Err)
    }
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frame.is_empty() {
            self.frame.resize(HEADER, 0);
        }
        let count = bytes.len().min(HEADER + CHUNK - self.frame.len());
        self.frame.extend_from_slice(&bytes[..count]);
        if self.frame.len() == HEADER + CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.frame.len() > HEADER {
            let length = self.frame.len() - HEADER;
            self.frame[..HEADER].copy_from_slice(&header(FrameType::Data, length));
            if let Err(error) = self.stream.send(&self.frame) {
                self.broken = Some(error);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        self.frame.clear();
        Ok(())
    }
}
