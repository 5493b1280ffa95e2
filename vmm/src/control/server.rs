//! The machine's side, on the main thread. No client can hold it up: sockets do not block, what a client sends is bounded,
//! and one that does not read its answers is dropped.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::{Greeting, MAX_LINE, Request, Response};

/// So many clients at once: the daemon, its successor, a command or two.
const MAX_CLIENTS: usize = 16;

/// The listener of the control socket and its clients.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    pidfd: OwnedFd,
    /// With its end of line.
    greeting: Vec<u8>,
    clients: BTreeMap<u64, Connection>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// The beginning of a line.
    received: Vec<u8>,
    /// What has come with it.
    descriptor: Option<OwnedFd>,
}

impl Server {
    /// Serves `listener`. `pidfd` is of this process.
    pub(crate) fn new(listener: UnixListener, pidfd: OwnedFd, greeting: &Greeting) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut greeting = serde_json::to_vec(greeting)?;
        greeting.push(b'\n');
        Ok(Self { listener, pidfd, greeting, clients: BTreeMap::new(), next: 0 })
    }

    /// What the jail has to keep.
    pub(crate) fn fds(&self) -> [RawFd; 2] {
        [self.listener.as_raw_fd(), self.pidfd.as_raw_fd()]
    }

    /// The listener, for epoll.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Takes a client that is waiting; it gets a token from `first_token` on.
    pub(crate) fn accept(&mut self, epoll: &OwnedFd, first_token: u64) {
        // Nothing is there any more when the client has gone at once, and it can try again when descriptors are short.
        let Ok((stream, _)) = self.listener.accept() else { return };
        // One that is too many learns which process this is all the same: whoever may connect can end it.
        if self.greet(&stream).is_err() || self.clients.len() == MAX_CLIENTS {
            return;
        }
        let token = first_token + self.next;
        self.next += 1;
        if epoll::add(epoll, &stream, EventData::new_u64(token), EventFlags::IN).is_ok() {
            self.clients.insert(token, Connection { stream, received: Vec::new(), descriptor: None });
        }
    }

    fn greet(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let descriptors = [self.pidfd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        // A new socket takes a line whole.
        sendmsg(stream, &[IoSlice::new(&self.greeting)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Answers what the client with `token` has asked, with the descriptor that has come with it.
    pub(crate) fn serve(&mut self, token: u64, answer: impl FnMut(Request, Option<OwnedFd>) -> Response) {
        if let Some(client) = self.clients.get_mut(&token)
            && client.serve(answer).is_err()
        {
            // Closed, it is no longer waited for.
            self.clients.remove(&token);
        }
    }
}

impl Connection {
    /// An error when the client is to be dropped.
    fn serve(&mut self, mut answer: impl FnMut(Request, Option<OwnedFd>) -> Response) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let count = match self.receive(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        self.received.extend_from_slice(&bytes[..count]);
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let descriptor = self.descriptor.take();
            let response = match serde_json::from_slice(&line) {
                Ok(request) => answer(request, descriptor),
                Err(e) => Response::Error { message: format!("the request is not understood: {e}") },
            };
            let mut line = serde_json::to_vec(&response)?;
            line.push(b'\n');
            // Ends in WouldBlock when the client has let many answers pile up.
            self.stream.write_all(&line)?;
        }
        if self.received.len() > MAX_LINE { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    /// Reads what there is. The first descriptor of a line is kept; the kernel closes those that there is no room for.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(&self.stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    self.descriptor.get_or_insert(descriptor);
                }
            }
        }
        Ok(received.bytes)
    }
}

#[cfg(test)]
mod tests;
