//! Bytes as they come, into frames.
//!
//! ```
//! # use protocol::{Decoder, Frame, FrameType, Sender};
//! # fn read(space: &mut [u8]) -> usize { space[..7].copy_from_slice(&[2, 0, 0, 0, 20, b'h', b'i']); 7 }
//! let mut decoder = Decoder::new(Sender::Agent);
//! let count = read(decoder.space());
//! decoder.filled(count);
//! while let Some(frame) = decoder.next_frame()? {
//!     assert_eq!(frame, Frame { kind: FrameType::Stdout, payload: b"hi" });
//! }
//! # Ok::<(), protocol::FrameError>(())
//! ```

use crate::frame::{Frame, FrameError, FrameType, HEADER, Sender};

/// Room for the header and for what most streams carry; it grows when a longer frame really arrives.
const FIRST_SPACE: usize = 4096;

/// Finds the frames in what one side sent. Beyond its first 4 KiB it never holds more than
/// one frame's length, nor more than twice the bytes that have arrived.
#[derive(Debug)]
pub struct Decoder {
    sender: Sender,
    buffer: Vec<u8>,
    /// Of the first byte that no frame has been made of.
    start: usize,
    /// Behind the last byte that was read.
    end: usize,
}

impl Decoder {
    /// A decoder of what `sender` sends.
    pub const fn new(sender: Sender) -> Self {
        Self { sender, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Where to read the next bytes to; call [`Decoder::filled`] afterwards. Never empty once [`Decoder::next_frame`] has
    /// returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // Doubling, so that a header alone does not make memory of what it only claims.
            let size = (self.buffer.len() * 2).max(FIRST_SPACE).min(HEADER + self.wanted());
            self.buffer.resize(size.max(self.buffer.len()), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// That `count` bytes were read to the beginning of [`Decoder::space`]. More than it had are not counted.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next whole frame; `None` if more has to be read. After an error the stream is of no further use, and the error
    /// comes again.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some((kind, length)) = self.peek()? else { return Ok(None) };
        let begin = self.start + HEADER;
        if self.end - begin < length {
            return Ok(None);
        }
        self.start = begin + length;
        Ok(Some(Frame { kind, payload: &self.buffer[begin..begin + length] }))
    }

    /// Whether [`Decoder::next_frame`] would give a frame now.
    pub fn has_frame(&self) -> Result<bool, FrameError> {
        Ok(self.peek()?.is_some_and(|(_, length)| self.end - self.start - HEADER >= length))
    }

    /// What was read behind the last frame: on a stream that carries something else from there on.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.buffer.truncate(self.end);
        self.buffer.drain(..self.start);
        self.buffer
    }

    /// Whether there are bytes of a frame that is not whole: at the end of a stream, that it broke off.
    pub const fn is_partial(&self) -> bool {
        self.start < self.end
    }

    /// The type and the length of the frame at the start, if its header is there and is valid.
    fn peek(&self) -> Result<Option<(FrameType, usize)>, FrameError> {
        let [a, b, c, d, byte, ..] = self.buffer[self.start..self.end] else { return Ok(None) };
        let kind = FrameType::from_byte(byte).ok_or(FrameError::UnknownType(byte))?;
        if !kind.sent_by(self.sender) {
            return Err(FrameError::WrongSide(kind));
        }
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > kind.max_payload() {
            return Err(FrameError::TooLong { kind, length });
        }
        Ok(Some((kind, length)))
    }

    /// How long a payload to make room for: the one that is arriving, else what most have.
    fn wanted(&self) -> usize {
        match self.peek() {
            Ok(Some((_, length))) => length.max(FIRST_SPACE),
            _ => FIRST_SPACE,
        }
    }
}
