//! One direction of a connection: what the guest sends, and the credit that it has for it.

use std::io;

use rustix::fd::OwnedFd;
use rustix::net::Shutdown;
use vm_memory::VolatileSlice;

use super::socket;

/// What the guest may send ahead of the client's reading, in bytes.
pub(super) const BUFFER: usize = 64 << 10;

/// From the guest to a client. Counters are modulo 2^32.
#[derive(Debug, Default)]
pub(super) struct ToHost {
    /// What the socket did not take, from `start` on; at most [`BUFFER`] bytes.
    buffer: Vec<u8>,
    start: usize,
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told: u32,
    /// The guest sends no more.
    ended: bool,
}

impl ToHost {
    /// As if so much had gone this way already.
    #[cfg(test)]
    pub(super) fn count_from(&mut self, counter: u32) {
        (self.received, self.forwarded, self.told) = (counter, counter, counter);
    }

    /// How many bytes it keeps for its client.
    #[cfg(any(test, fuzzing))]
    pub(super) fn kept(&self) -> usize {
        assert!(self.buffer.capacity() <= BUFFER);
        self.buffer.len() - self.start
    }

    /// Whether the client is to read before the guest may send on.
    pub(super) fn is_buffering(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether the guest sends no more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Half of the buffer has become free since the guest was told: it cannot wait for more than that.
    pub(super) fn owes_credit(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= (BUFFER / 2) as u32
    }

    /// What a packet is about to tell the guest: how much of its data has left the buffer.
    pub(super) fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.told
    }

    /// Data of the guest. Tells whether it had the credit, and had not ended.
    ///
    /// # Errors
    /// The socket does not work any more.
    pub(super) fn receive(&mut self, socket: &OwnedFd, payload: &[VolatileSlice<'_>]) -> io::Result<bool> {
        let len = payload.iter().map(VolatileSlice::len).sum::<usize>() as u32;
        let ahead = self.received.wrapping_sub(self.told);
        // Both are at most 64 KiB.
        if ahead + len > BUFFER as u32 || self.ended {
            return Ok(false);
        }
        self.received = self.received.wrapping_add(len);
        for slice in payload {
            let mut sent = 0;
            if !self.is_buffering() {
                match socket::send_from_guest(socket, slice) {
                    Ok(bytes) => sent = bytes,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                self.forwarded = self.forwarded.wrapping_add(sent as u32);
            }
            self.keep(slice, sent);
        }
        Ok(true)
    }

    /// The socket takes data again.
    ///
    /// # Errors
    /// It does not work any more.
    pub(super) fn flush(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while self.is_buffering() {
            match socket::send(socket, &self.buffer[self.start..]) {
                Ok(sent) => self.flushed(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.end_writing(socket);
        Ok(())
    }

    /// The guest sends no more.
    pub(super) fn end(&mut self, socket: &OwnedFd) {
        if !self.ended {
            self.ended = true;
            self.end_writing(socket);
        }
    }

    /// What is kept is of no use any more: it is sent, or nobody reads it.
    pub(super) fn discard(&mut self) {
        self.buffer = Vec::new();
        self.start = 0;
    }

    /// The client's end of file, behind everything that the guest has sent.
    fn end_writing(&self, socket: &OwnedFd) {
        if self.ended && !self.is_buffering() {
            socket::end(socket, Shutdown::Write);
        }
    }

    /// Keeps `slice` from `offset` on.
    fn keep(&mut self, slice: &VolatileSlice<'_>, offset: usize) {
        let Ok(rest) = slice.offset(offset) else { return };
        if rest.is_empty() {
            return;
        }
        // Exactly so much: a vector that grows by itself takes up to twice as much.
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.reserve_exact(BUFFER - self.buffer.len());
        let end = self.buffer.len();
        self.buffer.resize(end + rest.len(), 0);
        rest.copy_to(&mut self.buffer[end..]);
    }

    /// The socket has taken `sent` bytes of what was kept.
    fn flushed(&mut self, sent: usize) {
        self.forwarded = self.forwarded.wrapping_add(sent as u32);
        self.start += sent;
        if self.start == self.buffer.len() {
            self.discard();
        }
    }
}
