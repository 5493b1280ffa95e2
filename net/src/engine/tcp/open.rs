//! How a flow begins: the guest's SYN is held until the host has connected, or has not.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::io::Errno;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::super::packet::{self, Packet, Unreachable};
use super::super::poll::{Owner, Token};
use super::super::{Core, device, is_gateway, own, socket};
use super::Tcp;
use super::flow::{Flow, Guest, Key, Peer, Stage};
use super::names::Stream;
use super::police::{HOST_PORT, destination};
use crate::policy::Verdict;

/// How long a guest may take for its part of the handshake.
const HANDSHAKE: Duration = Duration::from_mins(1);
/// Streams to the gateway's name server, at most: each may have more than half a MiB of answers that the guest does not read.
const STREAMS: usize = 32;
/// The port of DNS.
const DNS: u16 = 53;

impl Tcp {
    /// Takes the guest's SYN, and connects to where it wants to.
    pub(super) fn open(&mut self, core: &mut Core, key: Key, packet: &Packet<'_>) {
        if self.flows.len() >= self.most {
            refuse(core, packet, Errno::CONNREFUSED);
            return;
        }
        if !core.rates.connections.take(core.now, 1) {
            core.dropped();
            return;
        }
        let (syn, mss) = held(packet);
        if is_gateway(key.address) && key.port == DNS {
            if self.streams >= STREAMS {
                refuse(core, packet, Errno::CONNREFUSED);
                return;
            }
            let serial = core.poll.serial();
            let stage = Stage::Connecting { syn };
            let slot = self.insert(Flow::new(key, serial, stage, Peer::Names(Stream::default()), mss));
            self.start(core, slot);
            return;
        }
        let mut own = false;
        let (address, names, to_be_named) = if is_gateway(key.address) {
            if !core.policy.host_port(key.port) {
                core.deny("tcp", key.destination(), None, HOST_PORT.into());
                refuse(core, packet, Errno::CONNREFUSED);
                return;
            }
            (SocketAddr::new(Ipv4Addr::LOCALHOST.into(), key.port), Vec::new(), false)
        } else {
            let names = core.names.names_of(core.now, key.address);
            let mut verdict = core.policy.decide(&destination(&key, own), &names);
            // What is denied anyhow costs the host no system call.
            if !matches!(verdict, Verdict::Deny { .. }) {
                own = match own::is_own(key.address) {
                    Ok(own) => own,
                    Err(error) => {
                        refuse(core, packet, error);
                        return;
                    }
                };
                if own {
                    verdict = core.policy.decide(&destination(&key, own), &names);
                }
            }
            match verdict {
                Verdict::Allow => (key.destination(), names, false),
                Verdict::AllowNamed => (key.destination(), names, true),
                Verdict::Deny { rule } => {
                    core.deny("tcp", key.destination(), names.into_iter().next(), rule);
                    core.unreachable(packet, Unreachable::Prohibited);
                    return;
                }
            }
        };
        match socket::connect(&address) {
            Ok((socket, connected)) => {
                let serial = core.poll.serial();
                let mut flow = Flow::new(key, serial, Stage::Connecting { syn }, Peer::Host(socket), mss);
                flow.own = own;
                flow.names = names;
                flow.to_be_named = to_be_named;
                let slot = self.insert(flow);
                if let Peer::Host(socket) = &self.flows[slot].peer
                    && let Err(error) =
                        core.poll.watch(socket.as_fd(), Token { owner: Owner::Tcp, slot, serial })
                {
                    self.remove(slot);
                    refuse(core, packet, Errno::from_io_error(&error).unwrap_or(Errno::NOMEM));
                } else if connected {
                    self.start(core, slot);
                }
            }
            Err(error) => refuse(core, packet, error),
        }
    }

    /// The host has connected: the guest's SYN gets its answer.
    pub(super) fn start(&mut self, core: &mut Core, slot: usize) {
        let size = self.budget.size();
        let flow = &mut self.flows[slot];
        let guest = match Guest::new(flow.key.destination(), size) {
            Ok(guest) => guest,
            Err(error) => {
                if let Stage::Connecting { syn } = &flow.stage
                    && let Some(packet) = Packet::parse(syn)
                {
                    refuse(core, &packet, error);
                }
                self.remove(slot);
                return;
            }
        };
        let stage = if flow.to_be_named { Stage::Naming } else { Stage::Open };
        let Stage::Connecting { syn } = std::mem::replace(&mut flow.stage, stage) else { return };
        self.budget.given += guest.size;
        flow.guest = Some(guest);
        flow.deadline = Some(core.now + HANDSHAKE);
        core.counters.connections.fetch_add(1, Relaxed);
        self.feed(core, slot, &syn);
    }
}

/// The packet of a SYN as it is held: without what may be in it besides, and with the longest segment that it takes.
pub(super) fn held(packet: &Packet<'_>) -> (Vec<u8>, u16) {
    let start = packet.bytes.len() - packet.payload.len();
    let v6 = packet.source.is_ipv6();
    // Lengths were checked when it was parsed.
    let len = usize::from(packet.payload[12] >> 4) * 4;
    let mut syn = packet.bytes[..start + len].to_vec();
    if v6 {
        Ipv6Packet::new_unchecked(&mut syn[..]).set_payload_len((start + len - 40) as u16);
    } else {
        Ipv4Packet::new_unchecked(&mut syn[..]).set_total_len((start + len) as u16);
    }
    let mss = device::clamp_mss(&mut syn[start..], device::mss(v6));
    (syn, mss)
}

/// Tells the guest why its SYN leads nowhere, as the host has told.
pub(super) fn refuse(core: &mut Core, packet: &Packet<'_>, error: Errno) {
    match error {
        // The guest's own patience has ended long before.
        Errno::TIMEDOUT => {}
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT => {
            core.unreachable(packet, Unreachable::Network);
        }
        Errno::HOSTUNREACH | Errno::HOSTDOWN => core.unreachable(packet, Unreachable::Host),
        // The host's own firewall.
        Errno::ACCESS | Errno::PERM => core.unreachable(packet, Unreachable::Prohibited),
        _ => {
            if let Some(answer) = packet::reset(packet) {
                core.link.packet(&answer);
            }
        }
    }
}
