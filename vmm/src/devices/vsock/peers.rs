//! Clients of published ports of UDP: each, by the address that its datagrams come from, gets a connection to the guest.
//!
//! ```text
//!   client ──▶ UDP socket ──▶ peer ══ a pair of stream sockets ══ connection ◀──▶ guest
//!     ▲───────────────────────────┘
//! ```
//!
//! On the connection each datagram has its length before it, a little-endian `u16`, both ways; the connection itself knows nothing of
//! that, and takes the pair for a client's stream. Nothing waits for long: a datagram that the guest does not take now, or the client's
//! socket, is dropped, as everywhere by UDP. A peer that is not heard of for a while ends; a guest that sends what is no datagram has ended
//! its connection.
//!
//! Who has sent a datagram may be made up, so that there are few peers, of all ports together: clients by TCP need places as well. Where
//! there are too many, one of the port with the most makes room, that was not heard of for the longest: other ports keep theirs.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recv, recvfrom,
    sendmsg_addr, socketpair,
};

use super::{Vsock, count, socket};
use crate::virtio::Events;

/// Clear of the tokens of connections and of published ports.
pub(super) const TOKENS: Range<u32> = 1 << 16..1 << 30;
/// The longest datagram, in bytes: what IPv4 carries.
pub(super) const MAX_DATAGRAM: usize = 65_507;
/// Of all ports.
pub(super) const MAX_PEERS: usize = 256;
/// A peer of which nothing came, from neither side, for so long has gone. As long as the network's own datagrams have.
const IDLE: Duration = Duration::from_mins(1);
/// So many datagrams are taken before others have their turn.
const TAKEN_AT_ONCE: usize = 64;

/// A datagram's length.
const LENGTH: usize = size_of::<u16>();
const FRAME: usize = LENGTH + MAX_DATAGRAM;

/// All clients of all ports, by token.
#[derive(Debug)]
pub(super) struct Peers {
    all: BTreeMap<u32, Peer>,
    by_client: BTreeMap<(u32, SocketAddr), u32>,
    next_token: u32,
    pub(super) idle: Duration,
    /// For one datagram and its length, from when there is a first one.
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Peer {
    /// The token of its port.
    port: u32,
    client: SocketAddr,
    /// The token of its connection.
    connection: u32,
    /// Its end of the pair.
    stream: OwnedFd,
    /// What is left of a datagram of which the connection has the beginning.
    to_guest: Vec<u8>,
    from_guest: Cutter,
    used: Instant,
}

/// Cuts into datagrams what the guest sends. It keeps less than one.
#[derive(Debug, Default)]
struct Cutter(Vec<u8>);

/// What the guest has sent is no datagram.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Cutter {
    /// How much it takes.
    fn room(&self) -> usize {
        FRAME - self.0.len()
    }

    /// Takes some bytes, and gives each datagram that is whole.
    fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLong> {
        self.0.reserve_exact(bytes.len());
        self.0.extend_from_slice(bytes);
        let mut rest = &self.0[..];
        while let Some((length, behind)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes(*length));
            if length > MAX_DATAGRAM {
                return Err(TooLong);
            }
            let Some((datagram, behind)) = behind.split_at_checked(length) else { break };
            each(datagram);
            rest = behind;
        }
        let done = self.0.len() - rest.len();
        if done == self.0.len() {
            self.0 = Vec::new();
        } else {
            self.0.drain(..done);
        }
        Ok(())
    }
}

impl Peer {
    fn interest(&self) -> EventFlags {
        let out = if self.to_guest.is_empty() { EventFlags::empty() } else { EventFlags::OUT };
        EventFlags::IN | out
    }

    /// Sends on a datagram, which `frame` is with its length, unless the guest has not even taken the one before.
    ///
    /// # Errors
    /// The connection has ended.
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.to_guest.is_empty() {
            match socket::send(&self.stream, frame) {
                Ok(sent) => self.to_guest = frame[sent..].to_vec(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends the rest of a datagram, as far as it goes.
    ///
    /// # Errors
    /// The connection has ended.
    fn flush(&mut self) -> io::Result<()> {
        match socket::send(&self.stream, &self.to_guest) {
            Ok(sent) => _ = self.to_guest.drain(..sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.to_guest.is_empty() {
            self.to_guest = Vec::new();
        }
        Ok(())
    }
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            by_client: BTreeMap::new(),
            next_token: TOKENS.start,
            idle: IDLE,
            scratch: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.all.len(), self.by_client.len());
        self.all.len()
    }

    pub(super) fn clear(&mut self) {
        *self = Self { next_token: self.next_token, idle: self.idle, ..Self::new() };
    }

    /// Ends those of a port.
    pub(super) fn forget(&mut self, port: u32) {
        self.retain(|peer| peer.port != port);
    }

    /// Ends those that have not been heard of for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let idle = self.idle;
        self.retain(|peer| now.saturating_duration_since(peer.used) < idle);
    }

    fn retain(&mut self, stays: impl Fn(&Peer) -> bool) {
        self.all.retain(|_, peer| stays(peer));
        self.by_client.retain(|_, token| self.all.contains_key(token));
    }

    /// The connection sees that its client has gone.
    fn remove(&mut self, token: u32) -> Option<Peer> {
        let peer = self.all.remove(&token)?;
        self.by_client.remove(&(peer.port, peer.client));
        Some(peer)
    }

    fn insert(&mut self, token: u32, peer: Peer) {
        self.by_client.insert((peer.port, peer.client), token);
        self.all.insert(token, peer);
    }

    /// A token that nobody has.
    fn token(&mut self) -> u32 {
        loop {
            let token = self.next_token;
            self.next_token = if token + 1 == TOKENS.end { TOKENS.start } else { token + 1 };
            if !self.all.contains_key(&token) {
                return token;
            }
        }
    }

    /// Who has to go before one more of this port comes.
    fn surplus(&self, port: u32) -> Option<u32> {
        if self.all.len() < MAX_PEERS {
            return None;
        }
        let mut counts = BTreeMap::<u32, usize>::new();
        for peer in self.all.values() {
            *counts.entry(peer.port).or_default() += 1;
        }
        let (largest, _) = counts.into_iter().max_by_key(|&(other, count)| (count, other == port))?;
        let of_largest = self.all.iter().filter(|(_, peer)| peer.port == largest);
        of_largest.min_by_key(|(_, peer)| peer.used).map(|(&token, _)| token)
    }

    /// The next datagram of a socket, which is in the scratch then, with its length before it: who has sent it, and how long that is.
    fn receive(&mut self, socket: &OwnedFd) -> Result<(usize, Option<SocketAddr>), Errno> {
        // One byte more shows a datagram that is too long, as IPv6 has them.
        self.scratch.resize(FRAME + 1, 0);
        let (_, length, client) = recvfrom(socket, &mut self.scratch[LENGTH..], RecvFlags::DONTWAIT)?;
        let client = client.and_then(|client| client.try_into().ok()).filter(|_| length <= MAX_DATAGRAM);
        self.scratch[..LENGTH].copy_from_slice(&(length as u16).to_le_bytes());
        Ok((LENGTH + length, client))
    }
}

impl Vsock {
    /// The clients of a published port of UDP have sent something.
    pub(super) fn take_datagrams(&mut self, token: u32, events: &Events<'_>) {
        for _ in 0..TAKEN_AT_ONCE {
            let Some(port) = self.published.get(&token) else { return };
            match self.peers.receive(&port.socket) {
                Ok((length, Some(client))) => self.take_datagram(token, client, length, events),
                Ok((_, None)) => count(&self.counters.dropped),
                Err(Errno::AGAIN) => return,
                // Of an answer that has not come through.
                Err(_) => {}
            }
        }
    }

    /// A datagram of `client`, which is in the scratch with its length.
    fn take_datagram(&mut self, port: u32, client: SocketAddr, length: usize, events: &Events<'_>) {
        let known = self.peers.by_client.get(&(port, client)).copied();
        let Some(token) = known.or_else(|| self.join(port, client, events)) else {
            return count(&self.counters.refused);
        };
        let Some(peer) = self.peers.all.get_mut(&token) else { return };
        peer.used = Instant::now();
        let before = peer.interest();
        let sent = peer.send(&self.peers.scratch[..length]);
        self.settle_peer(token, sent.is_ok(), before, events);
    }

    /// Joins a new client to the guest. Nobody makes room for one that does not get in.
    fn join(&mut self, port: u32, client: SocketAddr, events: &Events<'_>) -> Option<u32> {
        if self.connections.is_full_for_ports() {
            return None;
        }
        let target = self.published.get(&port)?;
        let (guest, preface) = (target.guest_port, Arc::clone(&target.preface));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (stream, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        let token = self.peers.token();
        events.add(&stream, token, EventFlags::IN).ok()?;
        let connection = self.connect(theirs, guest, preface, events)?;
        if let Some(oldest) = self.peers.surplus(port)
            && let Some(peer) = self.peers.remove(oldest)
        {
            // Now: one that the guest takes nothing from would have its place for some time still.
            self.reset(peer.connection);
        }
        let peer = Peer {
            port,
            client,
            connection,
            stream,
            to_guest: Vec::new(),
            from_guest: Cutter::default(),
            used: Instant::now(),
        };
        self.peers.insert(token, peer);
        Some(token)
    }

    /// A peer's end of its pair is ready.
    pub(super) fn peer_ready(&mut self, token: u32, flags: EventFlags, events: &Events<'_>) {
        let Some(peer) = self.peers.all.get_mut(&token) else { return };
        let before = peer.interest();
        let mut works = !flags.contains(EventFlags::OUT) || peer.to_guest.is_empty() || peer.flush().is_ok();
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            works &= self.send_answers(token);
        }
        self.settle_peer(token, works, before, events);
    }

    /// Sends on what the guest has sent to a client. False where that is its end.
    fn send_answers(&mut self, token: u32) -> bool {
        let Peers { all, scratch, .. } = &mut self.peers;
        let Some(peer) = all.get_mut(&token) else { return false };
        let Some(port) = self.published.get(&peer.port) else { return false };
        scratch.resize(FRAME + 1, 0);
        let room = peer.from_guest.room();
        let received = match recv(&peer.stream, &mut scratch[..room], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return false,
            Ok((_, received)) => received,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        peer.used = Instant::now();
        let cut = peer.from_guest.take(&scratch[..received], |datagram| {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // What does not go is lost.
            let (bytes, mut none) = ([IoSlice::new(datagram)], SendAncillaryBuffer::default());
            let _ = sendmsg_addr(&port.socket, &peer.client, &bytes, &mut none, flags);
        });
        if cut.is_err() {
            count(&self.counters.broken);
        }
        cut.is_ok()
    }

    /// Waits for the right events of a peer that `works`, and ends another one.
    fn settle_peer(&mut self, token: u32, works: bool, before: EventFlags, events: &Events<'_>) {
        let Some(peer) = self.peers.all.get(&token) else { return };
        let now = peer.interest();
        if !works || (now != before && events.modify(&peer.stream, token, now).is_err()) {
            self.peers.remove(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The datagrams that `pieces` are cut into, or how many there are before what is none.
    fn cut(pieces: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<Vec<u8>>, usize> {
        let (mut cutter, mut datagrams) = (Cutter::default(), Vec::new());
        for piece in pieces {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(cutter.room()));
                if cutter.take(now, |datagram| datagrams.push(datagram.to_vec())).is_err() {
                    return Err(datagrams.len());
                }
                assert!(cutter.0.capacity() <= FRAME && cutter.room() > 0);
                rest = later;
            }
        }
        Ok(datagrams)
    }

    fn framed(datagram: &[u8]) -> Vec<u8> {
        [&(datagram.len() as u16).to_le_bytes()[..], datagram].concat()
    }

    #[test]
    fn datagrams_are_cut_wherever_they_are_broken() {
        let datagrams = [vec![7; MAX_DATAGRAM], Vec::new(), vec![1], vec![2; 300], vec![3; MAX_DATAGRAM]];
        let stream: Vec<u8> = datagrams.iter().flat_map(|datagram| framed(datagram)).collect();
        for size in [1, 2, 3, 299, 65_536, stream.len()] {
            assert_eq!(cut(stream.chunks(size).map(<[u8]>::to_vec)).unwrap(), datagrams, "{size}");
        }
        assert_eq!(cut([stream[..stream.len() - 1].to_vec()]).unwrap(), datagrams[..4]);
    }

    #[test]
    fn what_is_longer_than_any_datagram_ends_it() {
        let too_long = (MAX_DATAGRAM as u16 + 1).to_le_bytes().to_vec();
        assert_eq!(cut([[framed(b"one"), too_long.clone()].concat()]), Err(1));
        assert_eq!(cut([vec![too_long[0]], vec![too_long[1]]]), Err(0));
        assert_eq!(cut([vec![0xff; 2]]), Err(0));
    }
}
