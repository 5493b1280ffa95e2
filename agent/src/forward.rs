//! Published ports: a stream of the host is joined to a TCP port of the guest's loopback.
//!
//! One thread moves both directions, as far as each goes without waiting, and then waits for either socket. It waits for edges: each
//! socket is read until it has nothing, or until what was read cannot be written. So no byte is received that there is no room for,
//! and a side that does not read holds up its own direction alone.

use crate::stream::{Stream, StreamError};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Ipv4Addr, Ipv6Addr, RecvFlags, SendFlags, Shutdown, SocketAddr, SocketFlags, SocketType,
    connect, recv, send, shutdown, socket_with, sockopt,
};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Of one direction, in bytes: a packet of vsock.
const BUFFER: usize = 64 << 10;
/// A server whose backlog is full may take so long to take one more.
const CONNECT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

const HOST: u64 = 0;
const SERVER: u64 = 1;

/// Carries out a Forward request.
pub(crate) fn forward(stream: Stream, port: u16) -> Result<(), StreamError> {
    let (host, received) = stream.into_raw();
    let result = dial(port).and_then(|server| {
        let joined = join(&host, &server, received);
        if joined.is_err() {
            // The server learns that it was no end of file.
            let _ = sockopt::set_socket_linger(&server, Some(Duration::ZERO));
        }
        joined
    });
    result.map_err(StreamError::Broken)
}

/// A connection to the port.
fn dial(port: u16) -> Result<OwnedFd, Errno> {
    match open(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
        Err(Errno::CONNREFUSED) => open(SocketAddr::from((Ipv6Addr::LOCALHOST, port))),
        result => result,
    }
}

fn open(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let server = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&server, &address) {
        Ok(()) => (),
        Err(Errno::INPROGRESS | Errno::INTR) => {
            let mut fds = [PollFd::new(&server, PollFlags::OUT)];
            if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&CONNECT)))? == 0 {
                return Err(Errno::TIMEDOUT);
            }
            sockopt::socket_error(&server)??;
        }
        Err(error) => return Err(error),
    }
    // A port that nobody listens at may be the very one that this end was given: then it is connected to itself.
    if is_its_own_peer(&server)? {
        return Err(Errno::CONNREFUSED);
    }
    sockopt::set_tcp_nodelay(&server, true)?;
    Ok(server)
}

/// Whether a socket is connected to itself.
pub(crate) fn is_its_own_peer(socket: &OwnedFd) -> Result<bool, Errno> {
    Ok(Some(rustix::net::getsockname(socket)?) == rustix::net::getpeername(socket)?)
}

/// Moves bytes until both directions have ended, or either side has gone.
fn join(host: &OwnedFd, server: &OwnedFd, received: Vec<u8>) -> Result<(), Errno> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(&epoll, host, EventData::new_u64(HOST), edges)?;
    epoll::add(&epoll, server, EventData::new_u64(SERVER), edges)?;
    let mut to_server = Direction { end: received.len(), bytes: received, ..Direction::new(host, server) };
    let mut to_host = Direction::new(server, host);
    let mut events = Vec::with_capacity(2);
    loop {
        // A server that takes no more may have answered before.
        let passed = to_server.pass();
        to_host.pass()?;
        passed?;
        if to_server.ended && to_host.ended {
            return Ok(());
        }
        if to_server.ended && has_gone(host, &events) {
            return Err(Errno::CONNRESET);
        }
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error),
        }
    }
}

/// Whether the host, whose end of file has come, takes nothing either.
fn has_gone(host: &OwnedFd, events: &[epoll::Event]) -> bool {
    let broken = EventFlags::HUP | EventFlags::ERR;
    let tells = |event: &epoll::Event| {
        // The structure is packed.
        let (token, flags) = (event.data, event.flags);
        token.u64() == HOST && flags.intersects(broken)
    };
    events.iter().any(tells)
        // vsock tells by an error of a write alone, which no bytes are needed for.
        || send(host, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Err(Errno::PIPE)
}

/// One direction.
struct Direction<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    /// What is not written yet is from `start` to `end`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The end of file has been passed on as well.
    ended: bool,
}

impl<'a> Direction<'a> {
    const fn new(from: &'a OwnedFd, to: &'a OwnedFd) -> Self {
        Self { from, to, bytes: Vec::new(), start: 0, end: 0, ended: false }
    }

    /// Passes on what goes without waiting.
    fn pass(&mut self) -> Result<(), Errno> {
        while !self.ended {
            while self.start < self.end {
                let rest = &self.bytes[self.start..self.end];
                match send(self.to, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Ok(count) => self.start += count,
                    Err(Errno::INTR) => (),
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            // Zeroed by the kernel, as it is used.
            if self.bytes.len() != BUFFER {
                self.bytes = vec![0; BUFFER];
            }
            (self.start, self.end) = (0, 0);
            match recv(self.from, &mut *self.bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.ended = true;
                    self.bytes = Vec::new();
                    // Fails where nobody reads any more.
                    let _ = shutdown(self.to, Shutdown::Write);
                }
                Ok((count, _)) => self.end = count,
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
