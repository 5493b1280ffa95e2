//! Published ports of UDP: the datagrams of one client, each behind its length, and those of the guest's own server for it.
//!
//! Nothing is kept for a server that does not take a datagram now: it is lost. Answers wait for the host, which takes them at any time,
//! and meanwhile the kernel keeps, or loses, what the server sends.

use crate::forward::is_its_own_peer;
use crate::stream::{Stream, StreamError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Ipv4Addr, Ipv6Addr, RecvFlags, SendFlags, SocketAddr, SocketFlags, SocketType, connect,
    recv, send, socket_with,
};
use std::os::fd::OwnedFd;

/// The longest datagram, in bytes.
const MAX_DATAGRAM: usize = 65_507;
/// Its length, before it.
const LENGTH: usize = size_of::<u16>();
/// For as much as the host's stream has at once.
const BUFFER: usize = 64 << 10;

/// Carries out a `ForwardUdp` request.
pub(crate) fn forward(stream: Stream, port: u16) -> Result<(), StreamError> {
    let (host, received) = stream.into_raw();
    pass(&host, received, port).map_err(StreamError::Broken)
}

/// Passes datagrams on until the host ends the stream.
fn pass(host: &OwnedFd, mut received: Vec<u8>, port: u16) -> Result<(), Errno> {
    let mut server = Server::new(port)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut rest = &received[..];
        while let Some((length, behind)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes(*length));
            if length > MAX_DATAGRAM {
                return Err(Errno::MSGSIZE);
            }
            let Some((datagram, behind)) = behind.split_at_checked(length) else { break };
            server.send(datagram);
            rest = behind;
        }
        let done = received.len() - rest.len();
        received.drain(..done);

        let mut fds = vec![PollFd::new(host, PollFlags::IN)];
        fds.extend(server.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (index, _) in ready[1..].iter().enumerate().filter(|(_, ready)| **ready) {
            match recv(&server.sockets[index], &mut buffer[LENGTH..], RecvFlags::DONTWAIT) {
                // By IPv6 there are some that are longer.
                Ok((_, length)) if length > MAX_DATAGRAM => {}
                Ok((_, length)) => {
                    buffer[..LENGTH].copy_from_slice(&(length as u16).to_le_bytes());
                    send_all(host, &buffer[..LENGTH + length])?;
                }
                Err(Errno::CONNREFUSED) if index == server.current => server.refused(),
                Err(_) => {}
            }
        }
        if ready[0] {
            match recv(host, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Ok(()),
                Ok((_, count)) => received.extend_from_slice(&buffer[..count]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn send_all(host: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let sent = rustix::io::retry_on_intr(|| send(host, bytes, SendFlags::NOSIGNAL))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// The guest's server, at one address or the other.
struct Server {
    /// To 127.0.0.1, and to ::1 where there is IPv6.
    sockets: Vec<OwnedFd>,
    /// The one that is spoken by.
    current: usize,
    last: Vec<u8>,
    /// So often the last datagram was refused.
    refusals: usize,
}

impl Server {
    fn new(port: u16) -> Result<Self, Errno> {
        let sockets = [
            open(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            open(SocketAddr::from((Ipv6Addr::LOCALHOST, port))),
        ];
        let [first, second] = sockets;
        let sockets = [first?].into_iter().chain(second).collect();
        Ok(Self { sockets, current: 0, last: Vec::new(), refusals: 0 })
    }

    fn send(&mut self, datagram: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(datagram);
        self.refusals = 0;
        self.try_send();
    }

    fn try_send(&mut self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // What does not go for another reason is lost.
        if send(&self.sockets[self.current], &self.last, flags) == Err(Errno::CONNREFUSED) {
            self.refused();
        }
    }

    /// Nobody is at the port there: the last datagram goes to the other address, if it was not there yet.
    fn refused(&mut self) {
        self.refusals += 1;
        if self.refusals < self.sockets.len() {
            self.current = (self.current + 1) % self.sockets.len();
            self.try_send();
        }
    }
}

fn open(server: SocketAddr) -> Result<OwnedFd, Errno> {
    let first = connected(server)?;
    // A port that nobody has may be the very one that this end was given: then it is connected to itself. The next one gets another.
    if is_its_own_peer(&first)? { connected(server) } else { Ok(first) }
}

fn connected(server: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    connect(&socket, &server)?;
    Ok(socket)
}
