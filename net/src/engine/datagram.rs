//! UDP and ICMP echo: a socket of the host for each port, or identifier, that the guest sends from.
//!
//! Memory: at most [`ASSOCIATIONS`] sockets with [`PEERS`] addresses each; the one that has been silent for longest goes first.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use slab::Slab;
use smoltcp::wire::UdpPacket;

use super::packet::{self, Packet, Unreachable};
use super::poll::{Event, Owner, Token};
use super::{Core, guest_address, own, socket};
use crate::address::MTU;
use crate::policy::{Destination, Protocol, Verdict};

/// Sockets for datagrams, at most: these, and an eighth of the descriptors.
const ASSOCIATIONS: usize = 1024;
/// Addresses that may answer one socket, at most.
const PEERS: usize = 256;
/// How long a socket stays on which nothing is sent or received (RFC 4787, section 4.3, asks for more; resolvers and QUIC need less).
const IDLE: Duration = Duration::from_mins(1);
/// How often the idle are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Datagrams that one socket is read for at once.
const TURN: usize = 64;

/// What the guest sends from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    protocol: Protocol,
    v6: bool,
    /// The UDP port, or the identifier of an echo request.
    port: u16,
}

struct Association {
    key: Key,
    serial: u32,
    socket: OwnedFd,
    /// Whom the guest has sent to.
    peers: HashMap<SocketAddr, Peer>,
    used: Instant,
    /// It is queued to be read.
    ready: bool,
    /// A datagram did not arrive.
    failed: bool,
}

struct Peer {
    /// Its address is this machine's own.
    own: bool,
    /// When the guest has sent to it.
    used: Instant,
}

/// See the module.
pub(super) struct Datagrams {
    associations: Slab<Association>,
    /// How many of them there may be.
    most: usize,
    index: HashMap<Key, usize>,
    ready: Vec<usize>,
    sweep: Option<Instant>,
    buffer: Box<[u8]>,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self {
            associations: Slab::new(),
            most: socket::bounded(ASSOCIATIONS, 1),
            index: HashMap::new(),
            ready: Vec::new(),
            sweep: None,
            buffer: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
        }
    }

    /// Without a call that a thread which is locked in may not make: how many descriptors there may be is known.
    pub(super) fn clear(&mut self) {
        self.associations.clear();
        self.index.clear();
        self.ready.clear();
        self.sweep = None;
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.sweep
    }

    /// How many sockets there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.associations.len()
    }

    /// Takes a UDP datagram that is not for the gateway. `None`: it was dropped.
    pub(super) fn udp(&mut self, core: &mut Core, packet: &Packet<'_>) -> Option<()> {
        let datagram = UdpPacket::new_checked(packet.payload).ok()?;
        let key = Key { protocol: Protocol::Udp, v6: packet.source.is_ipv6(), port: datagram.src_port() };
        if datagram.dst_port() == 0 {
            return None;
        }
        let peer = SocketAddr::new(packet.destination, datagram.dst_port());
        self.send(core, packet, key, peer, datagram.payload())
    }

    /// Takes an ICMP message that is not for the gateway.
    pub(super) fn echo(&mut self, core: &mut Core, packet: &Packet<'_>) -> Option<()> {
        let v6 = packet.source.is_ipv6();
        let message = packet.payload;
        let request = if v6 { 128 } else { 8 };
        if message.len() < 8 || message[0] != request || message[1] != 0 {
            return None;
        }
        let port = u16::from_be_bytes([message[4], message[5]]);
        let key = Key { protocol: Protocol::Icmp, v6, port };
        // The host's kernel fills in the identifier and the checksum.
        self.send(core, packet, key, SocketAddr::new(packet.destination, 0), message)
    }

    fn send(
        &mut self,
        core: &mut Core,
        packet: &Packet<'_>,
        key: Key,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Option<()> {
        let known = self.index.get(&key).copied();
        let sends = known.filter(|&slot| self.associations[slot].peers.contains_key(&peer));
        // What is denied anyhow costs the host no system call.
        if sends.is_none() {
            allow(core, packet, key, peer, false)?;
        }
        if !core.rates.to_host.take(core.now, payload.len()) {
            return None;
        }
        let slot = match sends {
            Some(slot) => slot,
            None => self.admit(core, packet, known, key, peer)?,
        };
        let association = &mut self.associations[slot];
        association.used = core.now;
        if let Some(peer) = association.peers.get_mut(&peer) {
            peer.used = core.now;
        }
        match socket::send_to(&association.socket, payload, &peer) {
            Ok(()) => Some(()),
            Err(error) => refuse(core, packet, error),
        }
    }

    /// Has one more that may answer what is `known` of this key, or a new socket for it.
    fn admit(
        &mut self,
        core: &mut Core,
        packet: &Packet<'_>,
        known: Option<usize>,
        key: Key,
        peer: SocketAddr,
    ) -> Option<usize> {
        let own = match own::is_own(peer.ip()) {
            Ok(own) => own,
            Err(error) => {
                refuse(core, packet, error);
                return None;
            }
        };
        if own {
            allow(core, packet, key, peer, own)?;
        }
        let slot = match known {
            Some(slot) => slot,
            None => self.open(core, packet, key, peer)?,
        };
        self.associations[slot].admit(peer, Peer { own, used: core.now });
        Some(slot)
    }

    fn open(&mut self, core: &mut Core, packet: &Packet<'_>, key: Key, peer: SocketAddr) -> Option<usize> {
        if self.associations.len() >= self.most
            && let Some(oldest) =
                self.associations.iter().min_by_key(|(_, association)| association.used).map(|(slot, _)| slot)
        {
            self.remove(oldest);
        }
        let opened = match key.protocol {
            Protocol::Udp => socket::udp(&peer),
            _ => socket::ping(&peer),
        };
        let socket = match opened {
            Ok(socket) => socket,
            Err(error) => {
                refuse(core, packet, error);
                return None;
            }
        };
        let serial = core.poll.serial();
        let entry = self.associations.vacant_entry();
        let slot = entry.key();
        core.poll.watch(socket.as_fd(), Token { owner: Owner::Datagram, slot, serial }).ok()?;
        entry.insert(Association {
            key,
            serial,
            socket,
            peers: HashMap::new(),
            used: core.now,
            ready: false,
            failed: false,
        });
        self.index.insert(key, slot);
        self.sweep.get_or_insert(core.now + SWEEP);
        Some(slot)
    }

    fn remove(&mut self, slot: usize) {
        if let Some(association) = self.associations.try_remove(slot) {
            self.index.remove(&association.key);
        }
    }

    /// Something has come for a socket.
    pub(super) fn event(&mut self, event: Event) {
        let slot = event.token.slot;
        if let Some(association) = self.associations.get_mut(slot)
            && association.serial == event.token.serial
            && event.readable
        {
            association.failed |= event.ended;
            if !association.ready {
                association.ready = true;
                self.ready.push(slot);
            }
        }
    }

    /// Reads what has come, for as long as there is room for it, and ends the idle. Whether there is more.
    pub(super) fn run(&mut self, core: &mut Core) -> bool {
        if self.sweep.is_some_and(|sweep| sweep <= core.now) {
            let idle: Vec<usize> = self
                .associations
                .iter()
                .filter(|(_, association)| association.used + IDLE <= core.now)
                .map(|(slot, _)| slot)
                .collect();
            for slot in idle {
                self.remove(slot);
            }
            self.sweep = (!self.associations.is_empty()).then(|| core.now + SWEEP);
        }
        for slot in std::mem::take(&mut self.ready) {
            let Some(association) = self.associations.get_mut(slot) else { continue };
            association.ready = association.read(core, &mut self.buffer);
            if association.ready {
                self.ready.push(slot);
            }
        }
        // What waits for room on the wire is no work.
        !self.ready.is_empty() && !core.link.is_full()
    }

    /// Ends what the policy does not allow any more.
    pub(super) fn police(&mut self, core: &mut Core) {
        for (_, association) in &mut self.associations {
            let key = association.key;
            association.peers.retain(|&address, peer| {
                let names = core.names.names_of(core.now, address.ip());
                decide(core, key, address, peer.own, &names).is_none()
            });
        }
        let gone: Vec<usize> = self
            .associations
            .iter()
            .filter(|(_, association)| association.peers.is_empty())
            .map(|(slot, _)| slot)
            .collect();
        for slot in gone {
            self.remove(slot);
        }
    }
}

/// Asks the policy. `None`: it denies, and the guest has been told.
fn allow(core: &mut Core, packet: &Packet<'_>, key: Key, peer: SocketAddr, own: bool) -> Option<()> {
    let names = core.names.names_of(core.now, peer.ip());
    match decide(core, key, peer, own, &names) {
        None => Some(()),
        Some(rule) => {
            let protocol = if key.protocol == Protocol::Udp { "udp" } else { "icmp" };
            core.deny(protocol, peer, names.into_iter().next(), rule);
            core.unreachable(packet, Unreachable::Prohibited);
            None
        }
    }
}

/// Tells the guest why its datagram leads nowhere, as the host has told. `None`: there are no words for it, and it was dropped.
fn refuse(core: &mut Core, packet: &Packet<'_>, error: Errno) -> Option<()> {
    core.unreachable(packet, unreachable(error)?);
    Some(())
}

/// What an error of the host's says of where a datagram was to go.
fn unreachable(error: Errno) -> Option<Unreachable> {
    match error {
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT => Some(Unreachable::Network),
        Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Unreachable::Host),
        Errno::ACCESS | Errno::PERM => Some(Unreachable::Prohibited),
        Errno::CONNREFUSED => Some(Unreachable::Port),
        _ => None,
    }
}

/// The rule by which the policy forbids this.
fn decide(core: &Core, key: Key, peer: SocketAddr, own: bool, names: &[String]) -> Option<String> {
    let destination = Destination { protocol: key.protocol, address: peer.ip(), port: peer.port(), own };
    match core.policy.decide(&destination, names) {
        Verdict::Allow => None,
        Verdict::Deny { rule } => Some(rule),
        // Only of TCP.
        Verdict::AllowNamed => Some("a server name that datagrams do not show".into()),
    }
}

impl Association {
    /// Has one more that may answer, in place of the oldest where there are too many.
    fn admit(&mut self, address: SocketAddr, peer: Peer) {
        if self.peers.len() >= PEERS
            && let Some(oldest) = self.peers.iter().min_by_key(|(_, peer)| peer.used).map(|(peer, _)| *peer)
        {
            self.peers.remove(&oldest);
        }
        self.peers.insert(address, peer);
    }

    /// Reads datagrams. Whether there may be more.
    fn read(&mut self, core: &mut Core, buffer: &mut [u8]) -> bool {
        if std::mem::take(&mut self.failed) {
            self.tell_failures(core);
        }
        for _ in 0..TURN {
            if core.link.is_full() {
                return true;
            }
            let (len, from) = match socket::receive_from(&self.socket, buffer) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return false,
                // A signal, or an error that an earlier datagram has met, which is taken by this.
                Err(_) => continue,
            };
            let peer = if self.key.protocol == Protocol::Icmp { SocketAddr::new(from.ip(), 0) } else { from };
            // Nobody but whom the guest has sent to.
            if !self.peers.contains_key(&peer) {
                continue;
            }
            self.used = core.now;
            let allowed = core.rates.to_guest.take(core.now, len);
            if !allowed || self.deliver(core, from, &mut buffer[..len]).is_none() {
                core.counters.dropped.fetch_add(1, Relaxed);
            }
        }
        true
    }

    /// Tells the guest which of its datagrams did not arrive.
    fn tell_failures(&self, core: &mut Core) {
        for _ in 0..TURN {
            let Some((peer, error)) = socket::failed(&self.socket) else { return };
            // Another one is that it was too long, which the host's kernel knows by now.
            let Some(why) = unreachable(error) else { continue };
            let guest = SocketAddr::new(guest_address(peer.ip()), self.key.port);
            if self.peers.contains_key(&peer)
                && let Some(datagram) = packet::udp(guest, peer, &[])
                && let Some(datagram) = Packet::parse(&datagram)
            {
                core.unreachable(&datagram, why);
            }
        }
    }

    fn deliver(&self, core: &mut Core, from: SocketAddr, payload: &mut [u8]) -> Option<()> {
        let guest: IpAddr = guest_address(from.ip());
        let packet = if self.key.protocol == Protocol::Udp {
            packet::udp(from, SocketAddr::new(guest, self.key.port), payload)?
        } else {
            let reply = if self.key.v6 { 129 } else { 0 };
            if payload.len() < 8 || payload[0] != reply {
                return None;
            }
            payload[4..6].copy_from_slice(&self.key.port.to_be_bytes());
            packet::icmp(from.ip(), guest, payload)?
        };
        core.datagram(&packet, usize::from(MTU))
    }
}
