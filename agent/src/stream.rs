//! One stream to the host: frames in and out.

use protocol::{Control, Decoder, Error, Frame, FrameError, FrameType, Sender, encode, header};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why a stream is of no further use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the host ended the stream")]
    Ended,
    #[error("the stream broke")]
    Broken(#[source] Errno),
    #[error("the host sent what is no frame")]
    Frame(#[from] FrameError),
}

#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    decoder: Decoder,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream {
    pub(crate) const fn new(socket: OwnedFd) -> Self {
        Self { socket, decoder: Decoder::new(Sender::Host) }
    }

    /// The socket, and what has been received behind the last frame.
    pub(crate) fn into_raw(self) -> (OwnedFd, Vec<u8>) {
        (self.socket, self.decoder.into_rest())
    }

    /// A frame that has been received already.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.decoder.next_frame()
    }

    /// Receives what is there, once; waits only if there is nothing and `flags` do not forbid it.
    pub(crate) fn receive(&mut self, flags: RecvFlags) -> Result<(), StreamError> {
        let count = loop {
            match rustix::net::recv(&self.socket, self.decoder.space(), flags) {
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(StreamError::Broken(error)),
                Ok((_, 0)) => return Err(StreamError::Ended),
                Ok((_, count)) => break count,
            }
        };
        self.decoder.filled(count);
        Ok(())
    }

    /// Waits for the next frame and gives it to `use_it`.
    pub(crate) fn read<T>(&mut self, use_it: impl FnOnce(Frame<'_>) -> T) -> Result<T, StreamError> {
        // Not a loop around next_frame: the borrow of the frame would last for all of it.
        while !self.decoder.has_frame()? {
            self.receive(RecvFlags::empty())?;
        }
        match self.decoder.next_frame()? {
            Some(frame) => Ok(use_it(frame)),
            None => Err(StreamError::Ended),
        }
    }

    /// An error if the host has gone: for work that neither reads nor writes for long.
    pub(crate) fn check(&self) -> Result<(), StreamError> {
        let mut fds = [PollFd::new(self, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            Ok(_) => Err(StreamError::Ended),
            Err(error) => Err(StreamError::Broken(error)),
        }
    }

    /// Sends what there is room for now; how much that was.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> Result<usize, StreamError> {
        loop {
            match rustix::net::send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return Ok(0),
                Err(error) => return Err(StreamError::Broken(error)),
                Ok(count) => return Ok(count),
            }
        }
    }

    /// Sends all of it.
    pub(crate) fn send(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => (),
                Err(error) => return Err(StreamError::Broken(error)),
                Ok(count) => bytes = &bytes[count..],
            }
        }
        Ok(())
    }

    /// Sends a control message.
    pub(crate) fn message<T: Control>(&self, message: &T) -> Result<(), StreamError> {
        self.send(&encode(message)?)
    }

    /// Sends a frame without a payload.
    pub(crate) fn mark(&self, kind: FrameType) -> Result<(), StreamError> {
        self.send(&header(kind, 0))
    }

    /// Sends the answer to a request that has no more to say than whether it was done.
    pub(crate) fn answer(&self, result: Result<(), Error>) -> Result<(), StreamError> {
        match result {
            Ok(()) => self.mark(FrameType::Done),
            Err(error) => self.message(&error),
        }
    }
}
