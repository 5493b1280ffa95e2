//! The engine: frames of a guest to sockets of the host, and back.
//!
//! [`Engine::receive`] looks at each frame at once: a segment goes into its flow's buffer, a datagram to its socket. [`Engine::run`]
//! takes the events of sockets and gives each flow with something to do a turn: bytes to the host, bytes from the host, then what the
//! guest is to get, as far as its wire has room. What it answers by itself waits in a short queue.
//!
//! What a guest can make it keep is bounded: less than 256 MiB of buffers of 4,096 TCP flows (`tcp`), 1,024 sockets for datagrams with
//! 256 addresses each (`datagram`), 256 questions to name servers of at most 64 KiB each, 32 streams with questions, and one MiB of
//! frames and pieces. Besides, there are the buffers of the host's sockets, which its kernel bounds.
//!
//! A connection that is denied is answered by ICMP "administratively prohibited": connect() fails at once with EHOSTUNREACH by IPv4,
//! for which Linux knows no better one, and with EACCES by IPv6.

mod checksum;
mod core;
mod datagram;
mod device;
mod dns;
mod fragments;
mod journal;
mod limits;
mod link;
mod neighbour;
mod own;
mod packet;
mod poll;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use smoltcp::wire::{IpProtocol, UdpPacket};

pub use self::limits::Limits;
pub use self::own::is_own;

use self::core::Core;
use self::datagram::Datagrams;
use self::dns::{Asker, Dns};
use self::fragments::Fragments;
use self::journal::Denials;
use self::limits::Rates;
use self::packet::{ETHERNET, Packet, Unreachable};
use self::poll::{Event, Owner, Poll};
use self::tcp::Tcp;
use crate::address::{GATEWAY, GATEWAY_MAC, GATEWAY6, GUEST, GUEST6, MTU};
use crate::dns::{Names, Query, Transport};
use crate::policy::Policy;
use crate::wire::{Features, Offload, Wire};

/// Rounds of events and turns that one [`Engine::run`] does.
const ROUNDS: usize = 4;

/// What an engine is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// What the guest may reach.
    pub policy: Policy,
    /// The host's name servers, which the gateway asks.
    pub resolvers: Vec<SocketAddr>,
    /// Names that the gateway answers by itself.
    #[serde(default)]
    pub hosts: BTreeMap<String, IpAddr>,
    /// Whether the host reaches anything by IPv6.
    #[serde(default)]
    pub ipv6: bool,
    /// How much the guest may use.
    #[serde(default)]
    pub limits: Limits,
}

/// What an engine has done.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of IP packets from the guest.
    pub sent_bytes: AtomicU64,
    /// And to it.
    pub received_bytes: AtomicU64,
    /// TCP connections of the guest that were established.
    pub connections: AtomicU64,
    /// Flows and names that the policy has denied.
    pub denied: AtomicU64,
    /// Frames and packets that were dropped: malformed, not understood, or of a datagram protocol without room.
    pub dropped: AtomicU64,
}

/// Something that the policy has denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// `tcp`, `udp`, `icmp` or `dns`.
    pub protocol: String,
    /// The address and port, or the name that was asked for.
    pub destination: String,
    /// The name that led there, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which rule it was.
    pub rule: String,
}

/// Hears of what the policy has denied. Called on the engine's thread: it must not block, and what it keeps has to be bounded, since a
/// guest can be denied as often as it likes.
pub type Journal = Box<dyn FnMut(Denial) + Send>;

/// A guest's network; see the crate.
pub struct Engine {
    core: Core,
    tcp: Tcp,
    datagrams: Datagrams,
    dns: Dns,
    fragments: Fragments,
    ipv6: bool,
    events: Vec<Event>,
}

impl Engine {
    /// An engine without a guest.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(config: Config, journal: Journal) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let now = Instant::now();
        let denials = Denials::new(journal, counters.clone(), now);
        let mut core =
            Core::new(Poll::new()?, config.policy, Names::new(&config.hosts), denials, counters, now);
        core.rates = Rates::new(config.limits, now);
        Ok(Self {
            tcp: Tcp::new(&mut core),
            core,
            datagrams: Datagrams::new(),
            dns: Dns::new(config.resolvers),
            fragments: Fragments::default(),
            ipv6: config.ipv6,
            events: Vec::new(),
        })
    }

    /// Readable when [`run`](Self::run) has something to do: an epoll descriptor of all sockets and of the next deadline.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.core.poll.fd()
    }

    /// What it has done, for the whole of its life.
    pub fn counters(&self) -> Arc<Counters> {
        self.core.counters.clone()
    }

    /// The guest's driver is ready, and takes this. Flows of an earlier one are gone.
    pub fn attach(&mut self, features: Features) {
        self.core.link.attach(features);
        self.end_flows();
    }

    /// The driver is gone: closes all flows.
    pub fn detach(&mut self) {
        self.attach(Features::default());
    }

    fn end_flows(&mut self) {
        self.tcp.clear(&mut self.core);
        self.datagrams.clear();
        self.dns.clear();
        self.fragments = Fragments::default();
    }

    /// Takes a frame of the guest, of any content. What there is to answer comes with the next [`run`](Self::run).
    pub fn receive(&mut self, frame: &[u8], offload: Offload) {
        // A frame to be cut arrives whole: sockets take a stream. Nor is its checksum looked at: it has crossed nothing but memory.
        let _ = offload;
        self.core.now = Instant::now();
        if self.take(frame).is_none() {
            self.core.dropped();
        }
    }

    /// `None`: the frame was dropped.
    fn take(&mut self, frame: &[u8]) -> Option<()> {
        let (header, payload) = frame.split_first_chunk::<ETHERNET>()?;
        let [destination @ .., _, _, _, _, _, _, kind, more] = *header;
        let destination: [u8; 6] = destination;
        if destination != GATEWAY_MAC && destination[0] & 1 == 0 {
            return None;
        }
        if header[6] & 1 == 0 {
            self.core.link.set_guest([header[6], header[7], header[8], header[9], header[10], header[11]]);
        }
        match u16::from_be_bytes([kind, more]) {
            link::ARP => neighbour::arp(payload, &mut self.core.link),
            0x0800 => self.packet(&Packet::parse(payload).filter(|packet| packet.source == GUEST)?),
            0x86dd if self.ipv6 => self.packet6(&Packet::parse(payload)?),
            _ => None,
        }
    }

    fn packet6(&mut self, packet: &Packet<'_>) -> Option<()> {
        if packet.protocol == IpProtocol::Icmpv6 && packet.payload.first() == Some(&135) {
            return neighbour::solicitation(packet, &mut self.core.link);
        }
        if packet.source == GUEST6 { self.packet(packet) } else { None }
    }

    fn packet(&mut self, packet: &Packet<'_>) -> Option<()> {
        let core = &mut self.core;
        core.counters.sent_bytes.fetch_add(packet.bytes.len() as u64, Relaxed);
        // Discovery of neighbours that a guest has not, and the like.
        if !packet::is_unicast(packet.destination) {
            return None;
        }
        if packet.fragment {
            return match self.fragments.add(packet) {
                Some(whole) => self.deliver(&Packet::parse(&whole)?),
                // Not yet, or never.
                None => Some(()),
            };
        }
        self.deliver(packet)
    }

    fn deliver(&mut self, packet: &Packet<'_>) -> Option<()> {
        let core = &mut self.core;
        match packet.protocol {
            IpProtocol::Tcp => self.tcp.receive(core, packet),
            IpProtocol::Udp if is_gateway(packet.destination) => self.gateway_udp(packet),
            IpProtocol::Udp => self.datagrams.udp(core, packet),
            IpProtocol::Icmp | IpProtocol::Icmpv6 if is_gateway(packet.destination) => {
                self.gateway_echo(packet)
            }
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.datagrams.echo(core, packet),
            _ => None,
        }
    }

    /// The gateway's name server by UDP; nothing else listens there.
    fn gateway_udp(&mut self, packet: &Packet<'_>) -> Option<()> {
        let core = &mut self.core;
        let datagram = UdpPacket::new_checked(packet.payload).ok()?;
        let guest = SocketAddr::new(packet.source, datagram.src_port());
        let gateway = SocketAddr::new(packet.destination, datagram.dst_port());
        if gateway.port() != 53 {
            core.unreachable(packet, Unreachable::Port);
            return Some(());
        }
        let reply = match core.names.query(core.now, datagram.payload(), Transport::Udp, &core.policy) {
            Query::Reply(reply) => reply,
            Query::Denied { name, rule, reply } => {
                core.deny_name(name, rule);
                reply
            }
            Query::Forward { message, question } => {
                let asker = Asker::Datagram { guest, gateway };
                match self.dns.ask(core, message, question, asker) {
                    Ok(()) => return Some(()),
                    Err(refusal) => refusal,
                }
            }
            Query::Malformed => return None,
        };
        core.datagram(&packet::udp(gateway, guest, &reply)?, usize::from(MTU))
    }

    /// The gateway answers echo requests.
    fn gateway_echo(&mut self, packet: &Packet<'_>) -> Option<()> {
        let (request, reply) = if packet.source.is_ipv4() { (8, 0) } else { (128, 129) };
        if packet.payload.len() < 8 || packet.payload[..2] != [request, 0] {
            return None;
        }
        let mut message = packet.payload.to_vec();
        message[0] = reply;
        let answer = packet::icmp(packet.destination, packet.source, &message)?;
        self.core.datagram(&answer, usize::from(MTU))
    }

    /// Does what can be done: to be called after frames were received, when [`fd`](Self::fd) is readable, and when `wire` has room again
    /// after it had none. Does a bounded amount of work; where there is more, `fd` stays readable.
    pub fn run(&mut self, wire: &mut dyn Wire) {
        let mut more = true;
        for _ in 0..ROUNDS {
            if !more {
                break;
            }
            more = self.round(wire);
        }
        let core = &mut self.core;
        let deadline = if more {
            Some(core.now)
        } else {
            [self.tcp.deadline(), self.datagrams.deadline(), self.dns.deadline()].into_iter().flatten().min()
        };
        core.poll.arm(core.now, deadline);
    }

    /// Whether there is more.
    fn round(&mut self, wire: &mut dyn Wire) -> bool {
        let core = &mut self.core;
        core.now = Instant::now();
        let mut more = core.poll.events(&mut self.events);
        for &event in &self.events {
            match event.token.owner {
                Owner::Tcp => self.tcp.event(core, event),
                Owner::Datagram => self.datagrams.event(event),
                Owner::Dns => self.dns.event(core, event),
                Owner::Timer => {}
            }
        }
        self.dns.run(core);
        self.hand_on_answers();
        let core = &mut self.core;
        more |= self.datagrams.run(core);
        // Twice, so that streams do not take all the room.
        let sent = core.link.flush(wire);
        core.counters.received_bytes.fetch_add(sent, Relaxed);
        more |= self.tcp.run(core, &mut self.dns, wire);
        // Questions of streams that nobody can be asked.
        more |= self.dns.has_answers();
        let sent = core.link.flush(wire);
        core.counters.received_bytes.fetch_add(sent, Relaxed);
        more
    }

    fn hand_on_answers(&mut self) {
        for (asker, answer) in self.dns.take_answers() {
            match asker {
                Asker::Stream { slot, serial } => self.tcp.answer(slot, serial, &answer),
                Asker::Datagram { guest, gateway } => {
                    let sent = packet::udp(gateway, guest, &answer)
                        .and_then(|packet| self.core.datagram(&packet, usize::from(MTU)));
                    if sent.is_none() {
                        self.core.dropped();
                    }
                }
            }
        }
    }

    /// Another policy, from now on: flows that it does not allow are ended.
    pub fn set_policy(&mut self, policy: Policy) {
        self.core.policy = policy;
        self.core.names.forget_answers();
        self.tcp.police(&mut self.core);
        self.datagrams.police(&mut self.core);
        // Their ends are to be told.
        self.core.poll.arm(self.core.now, Some(self.core.now));
    }

    /// Other limits, from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.core.rates = Rates::new(limits, Instant::now());
    }

    /// The host has other name servers now.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        self.dns.set_resolvers(resolvers);
        self.core.names.forget_answers();
    }
}

/// Whether `address` is one of the gateway's.
fn is_gateway(address: IpAddr) -> bool {
    address == GATEWAY || address == GATEWAY6
}

/// The address of the guest that talks to `peer`.
fn guest_address(peer: IpAddr) -> IpAddr {
    if peer.is_ipv4() { GUEST.into() } else { GUEST6.into() }
}
