//! TCP: the flows of a guest.
//!
//! Memory: a flow has two buffers, one each way, whose size [`Budget`] picks by what the others have; there are at most [`FLOWS`].
//! The sockets of the host have theirs on top, which the host's kernel bounds.

mod flow;
mod names;
mod open;
mod pages;
mod police;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use slab::Slab;
use smoltcp::iface::{Config, Interface, PollResult};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{HardwareAddress, TcpPacket};

use self::flow::{Flow, Key, Peer, Stage, Turn};
use self::open::{held, refuse};
use super::core::random;
use super::device::Device;
use super::dns::Dns;
use super::packet::{self, Packet};
use super::poll::Event;
use super::timers::Timers;
use super::{Core, limits, socket};
use crate::peek::MAX_PEEK;
use crate::wire::{MAX_FRAME, Wire};

/// Flows of a guest, at most: these, and half of the descriptors. One more is reset.
const FLOWS: usize = 4096;
/// Flows that one [`Tcp::run`] gives a turn.
const TURNS: usize = 256;
/// Frames that one turn sends.
const FRAMES: usize = 16;
/// How long it may take to name the server, where the policy asks for a name.
const NAMING: Duration = Duration::from_secs(10);

/// How large a flow's buffers are. The more the others have, the smaller: 512 KiB each way for as long as less than 64 MiB are given
/// away, 128 KiB up to 128 MiB, then 16 KiB. With [`FLOWS`] that is less than 256 MiB, of which only what was filled is memory.
#[derive(Default)]
struct Budget {
    given: usize,
}

impl Budget {
    fn size(&self) -> usize {
        match self.given >> 20 {
            0..64 => 512 * 1024,
            64..128 => 128 * 1024,
            _ => MAX_PEEK,
        }
    }
}

/// See the module.
pub(super) struct Tcp {
    interface: Interface,
    flows: Slab<Flow>,
    /// How many of them there may be.
    most: usize,
    /// How many of them are streams to the gateway's name server.
    streams: usize,
    index: HashMap<Key, usize>,
    /// Flows with something to do.
    ready: VecDeque<usize>,
    /// Flows that wait for room on the wire.
    stalled: Vec<usize>,
    timers: Timers,
    budget: Budget,
    scratch: Box<[u8]>,
}

/// smoltcp's network interface: the same for all flows, it knows the wire's properties alone.
fn interface(core: &mut Core, scratch: &mut [u8]) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = random();
    let now = core.smoltcp_now();
    let mut interface = Interface::new(config, &mut Device::idle(&mut core.link, scratch), now);
    // Every address that a guest sends to is here.
    interface.set_any_ip(true);
    interface
}

impl Tcp {
    pub(super) fn new(core: &mut Core) -> Self {
        let mut scratch = vec![0; MAX_FRAME].into_boxed_slice();
        Self {
            interface: interface(core, &mut scratch),
            flows: Slab::new(),
            most: socket::bounded(FLOWS, 4),
            streams: 0,
            index: HashMap::new(),
            ready: VecDeque::new(),
            stalled: Vec::new(),
            timers: Timers::default(),
            budget: Budget::default(),
            scratch,
        }
    }

    /// Forgets all flows; what their peers notice is a reset.
    pub(super) fn clear(&mut self, core: &mut Core) {
        for (_, flow) in &self.flows {
            flow.reset_host();
        }
        self.flows.clear();
        self.streams = 0;
        self.index.clear();
        self.ready.clear();
        self.stalled.clear();
        self.timers.clear();
        self.budget = Budget::default();
        self.interface = interface(core, &mut self.scratch);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// How many flows there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Takes a segment of the guest. `None`: it was dropped.
    pub(super) fn receive(&mut self, core: &mut Core, packet: &Packet<'_>) -> Option<()> {
        let segment = TcpPacket::new_checked(packet.payload).ok()?;
        let key =
            Key { address: packet.destination, port: segment.dst_port(), guest_port: segment.src_port() };
        let opens = segment.syn() && !segment.ack() && !segment.rst() && !segment.fin();
        let Some(&slot) = self.index.get(&key) else {
            if key.port == 0 || key.guest_port == 0 {
                return None;
            }
            if opens {
                self.open(core, key, packet);
            } else if let Some(answer) = packet::reset(packet) {
                core.link.packet(&answer);
            }
            return Some(());
        };
        let flow = &mut self.flows[slot];
        match &mut flow.stage {
            Stage::Connecting { .. } if segment.rst() => {
                flow.reset_host();
                self.remove(slot);
            }
            Stage::Connecting { syn } => {
                // The guest may have given up, and have begun anew from the same port.
                if opens {
                    (*syn, flow.mss) = held(packet);
                }
            }
            _ => self.feed(core, slot, packet.bytes),
        }
        Some(())
    }

    /// Hands a segment to smoltcp.
    fn feed(&mut self, core: &mut Core, slot: usize, packet: &[u8]) {
        let now = core.smoltcp_now();
        let flow = &mut self.flows[slot];
        if let Some(guest) = &mut flow.guest {
            let mut device = Device::receiving(packet, &mut core.link, &mut self.scratch, flow.mss);
            self.interface.poll_ingress_single(now, &mut device, &mut guest.sockets);
            flow.note_end();
        }
        self.make_ready(slot);
    }

    fn make_ready(&mut self, slot: usize) {
        if let Some(flow) = self.flows.get_mut(slot)
            && !flow.ready
        {
            flow.ready = true;
            self.ready.push_back(slot);
        }
    }

    fn insert(&mut self, flow: Flow) -> usize {
        let key = flow.key;
        let slot = self.flows.insert(flow);
        self.streams += usize::from(matches!(self.flows[slot].peer, Peer::Names(_)));
        self.index.insert(key, slot);
        slot
    }

    fn remove(&mut self, slot: usize) {
        let Some(mut flow) = self.flows.try_remove(slot) else { return };
        self.streams -= usize::from(matches!(flow.peer, Peer::Names(_)));
        self.index.remove(&flow.key);
        self.timers.cancel(slot, &mut flow.armed);
        if let Some(guest) = flow.guest {
            self.budget.given -= guest.size;
        }
    }

    /// Something has happened to a host's socket.
    pub(super) fn event(&mut self, core: &mut Core, event: Event) {
        let slot = event.token.slot;
        let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.serial == event.token.serial) else {
            return;
        };
        flow.readable |= event.readable;
        flow.writable |= event.writable;
        flow.host_ended |= event.ended;
        let (Stage::Connecting { syn }, Peer::Host(socket)) = (&flow.stage, &flow.peer) else {
            self.make_ready(slot);
            return;
        };
        match rustix::net::sockopt::socket_error(socket) {
            Ok(Ok(())) if event.writable => self.start(core, slot),
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => {
                let syn = syn.clone();
                self.remove(slot);
                if let Some(packet) = Packet::parse(&syn) {
                    refuse(core, &packet, error);
                }
            }
        }
    }

    /// An answer for a stream to the gateway's name server.
    pub(super) fn answer(&mut self, slot: usize, serial: u32, message: &[u8]) {
        if let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.serial == serial)
            && let Peer::Names(stream) = &mut flow.peer
        {
            stream.answered(message);
            self.make_ready(slot);
        }
    }

    /// Gives flows their turns. Whether there are more that want one.
    pub(super) fn run(&mut self, core: &mut Core, dns: &mut Dns, wire: &mut dyn Wire) -> bool {
        while let Some(slot) = self.timers.due(core.now) {
            if let Some(flow) = self.flows.get_mut(slot) {
                flow.armed = None;
            }
            self.make_ready(slot);
        }
        for slot in std::mem::take(&mut self.stalled) {
            self.make_ready(slot);
        }
        let mut blocked = false;
        for _ in 0..self.ready.len().min(TURNS) {
            let Some(slot) = self.ready.pop_front() else { break };
            if let Some(flow) = self.flows.get_mut(slot) {
                flow.ready = false;
                self.turn(core, dns, wire, slot, &mut blocked);
            }
        }
        // Where the guest has no room they wait until it tells of some.
        !self.ready.is_empty() && !blocked
    }

    fn turn(&mut self, core: &mut Core, dns: &mut Dns, wire: &mut dyn Wire, slot: usize, blocked: &mut bool) {
        if matches!(self.flows[slot].stage, Stage::Connecting { .. }) {
            return;
        }
        self.keep_time(core, slot);
        if matches!(self.flows[slot].stage, Stage::Naming) {
            self.name(core, slot);
        }
        let mut turn = Turn::Idle;
        match (&self.flows[slot].stage, &self.flows[slot].peer) {
            (Stage::Open, Peer::Host(_)) => turn = self.flows[slot].pump(core.now, &mut core.rates),
            (Stage::Open, Peer::Names(_)) => self.serve_names(core, dns, slot),
            _ => {}
        }
        let stalls = *blocked || self.send(core, wire, slot, &mut turn);
        *blocked |= stalls;
        let flow = &mut self.flows[slot];
        if !stalls && turn != Turn::More && flow.is_over() {
            self.remove(slot);
        } else if stalls {
            self.stalled.push(slot);
        } else if turn == Turn::More {
            self.make_ready(slot);
        } else {
            let again = (turn == Turn::Limited).then(|| core.now + limits::AGAIN);
            self.set_timer(core, slot, again);
        }
    }

    /// Sends what smoltcp has for the guest. Whether there was no room for it.
    fn send(&mut self, core: &mut Core, wire: &mut dyn Wire, slot: usize, turn: &mut Turn) -> bool {
        let now = core.smoltcp_now();
        let flow = &mut self.flows[slot];
        if flow.waits_for_host_alone() && flow.told_all {
            return false;
        }
        let Some(guest) = &mut flow.guest else { return false };
        for frame in 0.. {
            if frame == FRAMES {
                *turn = Turn::More;
                break;
            }
            let queued = guest.socket().send_queue();
            let mut device = Device::sending(wire, &mut core.link, &mut self.scratch, flow.mss, queued);
            let result = self.interface.poll_egress(now, &mut device, &mut guest.sockets);
            core.counters.received_bytes.fetch_add(device.sent, Relaxed);
            if device.blocked {
                return true;
            }
            if result == PollResult::None {
                flow.told_all = guest.socket().state() == State::TimeWait;
                break;
            }
        }
        false
    }

    /// Deadlines of a flow that smoltcp does not know.
    fn keep_time(&mut self, core: &mut Core, slot: usize) {
        let flow = &mut self.flows[slot];
        let Some(deadline) = flow.deadline else { return };
        let due = deadline <= core.now;
        match (flow.state(), &flow.stage, &flow.peer) {
            (State::SynReceived, ..) if due => flow.abort(),
            (State::SynReceived | State::Listen, ..) => {}
            // From here on the guest has done its part of the handshake.
            (_, Stage::Naming, _) if deadline > core.now + NAMING => flow.deadline = Some(core.now + NAMING),
            (_, Stage::Naming, _) if due => self.deny_unnamed(core, slot),
            (_, Stage::Open, Peer::Names(_)) if due => flow.abort(),
            (_, Stage::Open, Peer::Host(_)) => flow.deadline = None,
            _ => {}
        }
    }

    /// Wakes the flow when something of it is due, or `again`.
    fn set_timer(&mut self, core: &mut Core, slot: usize, again: Option<Instant>) {
        let now = core.smoltcp_now();
        let flow = &mut self.flows[slot];
        let mut deadline = [flow.deadline, again].into_iter().flatten().min();
        if !flow.waits_for_host_alone()
            && let Some(guest) = &flow.guest
            && let Some(at) = self.interface.poll_at(now, &guest.sockets)
        {
            // What is due now has been tried, and a moment is to pass before it is again.
            let at = core.instant(at).max(core.now + Duration::from_millis(1));
            deadline = Some(deadline.map_or(at, |deadline| deadline.min(at)));
        }
        self.timers.set(slot, &mut flow.armed, deadline);
    }
}
