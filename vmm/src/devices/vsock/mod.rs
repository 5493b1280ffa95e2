//! The socket device (section 5.10): stream connections between the guest and Unix sockets of the host.
//!
//! ```text
//!   client ──CONNECT 1024──▶ listener ─▶ greeting ─▶ connection ◀──▶ RX and TX queue ◀──▶ guest
//!   TCP client ─────────────▶ published port ─────────▶ connection, its preface first
//!   UDP client ─────────────▶ published port ─▶ peer ─▶ connection, its preface first
//!   `ready` stream ◀──────── the guest connects to port 1024 of the host
//! ```
//!
//! Everything is driven by events of the worker: a notification of a queue, or a socket that is ready. Each is followed by
//! one pass that fills receive buffers in turns, a packet a connection, for as long as there are buffers and packets, and
//! by at most one interrupt for both queues: status and acknowledgement of each cost the guest two exits.
//!
//! Sockets are waited for edge-triggered. A client whose data the guest has no buffers or no credit for wakes the worker once,
//! not for ever.

mod activity;
mod connection;
mod connections;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod greeting;
mod packet;
mod peers;
mod published;
mod socket;
mod to_host;
mod transport;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::connection::{Connection, Verdict};
use self::connections::{Connections, MAX_CONNECTIONS, MAX_RESETS, TOKENS};
use self::greeting::Greeting;
use self::packet::STREAM;
use self::peers::Peers;
use super::{Setting, State};
use crate::spec::{MAX_PORTS, Transport};
use crate::virtio::{Active, ConfigSpace, Device, DeviceError, Events, Info, Saved};

pub use self::activity::Activity;
pub use self::connections::{Pair, Reset};
pub use self::published::Published;

/// The port of the host that the guest's agent connects to once it is ready.
pub const READY_PORT: u32 = 1024;

const RX: usize = 0;
const TX: usize = 1;

const LISTENER: u32 = 0;
const TIMER: u32 = 1;
/// Of the first published port; below those of connections.
const FIRST_PUBLISHED: u32 = 2;

/// How long a client may take for its line, the guest for its answer, and the guest to take what a client that has gone has
/// left behind. Generous: a guest may be short of CPU.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many clients are accepted before others have their turn.
const ACCEPTED_AT_ONCE: usize = 64;

/// A virtio socket device.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    config: Arc<ConfigSpace>,
    listener: UnixListener,
    /// What the guest may connect to: by port, one stream for one connection.
    ports: BTreeMap<u32, UnixStream>,
    /// What clients of the host reach by TCP and UDP, by their tokens.
    published: BTreeMap<u32, Published>,
    /// The clients by UDP.
    peers: Peers,
    timer: OwnedFd,
    /// The timer is running.
    armed: bool,
    /// The listener is not waited for: the process had no descriptor left for a client.
    deaf: bool,
    patience: Duration,
    connections: Connections,
    counters: Arc<Counters>,
    active: Option<Active>,
    /// The queue has used buffers that the driver was not told of: RX, TX.
    used: [bool; 2],
}

/// What a device has met since it was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that both sides have agreed to.
    pub opened: AtomicU64,
    /// Clients that were turned away because there were too many, and requests of the guest for what there is not.
    pub refused: AtomicU64,
    /// Connections given up because nothing came for too long.
    pub expired: AtomicU64,
    /// Connections that the guest has broken: more data than credit, or a packet that does not belong there.
    pub broken: AtomicU64,
    /// Packets without answer: of another CID, or resets of a guest that takes none.
    pub dropped: AtomicU64,
    /// The streams that clients have.
    pub activity: Arc<Activity>,
}

/// The state of a socket device: what the guest must forget after a restore.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// The guest's CID.
    pub cid: u64,
    /// The next port of the host for a client, so that a restored machine does not meet the old ports again.
    pub next_port: u32,
    /// The connections that the guest knows of, in order. A restored machine gets a reset for each, before anything else.
    pub resets: Vec<Reset>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Vsock {
    /// The device of the guest with `cid` (at least 3). Clients connect to `listener`; the guest's first connection to
    /// [`READY_PORT`] becomes `ready`. Both are made non-blocking.
    ///
    /// # Errors
    /// A descriptor is not what it should be, or there are none left.
    pub fn new(cid: u64, listener: UnixListener, ready: UnixStream) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        ready.set_nonblocking(true)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC.union(TimerfdFlags::NONBLOCK))?;
        Ok(Self {
            cid,
            config: Arc::new(ConfigSpace::read_only(cid.to_le_bytes().to_vec())),
            listener,
            ports: BTreeMap::from([(READY_PORT, ready)]),
            published: BTreeMap::new(),
            peers: Peers::new(),
            timer,
            armed: false,
            deaf: false,
            patience: PATIENCE,
            connections: Connections::new(),
            counters: Arc::default(),
            active: None,
            used: [false; 2],
        })
    }

    /// What the device has met; for the whole of its life.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn watch(&mut self, events: &Events<'_>) -> io::Result<()> {
        self.armed = false;
        self.deaf = false;
        events.add(&self.listener, LISTENER, EventFlags::IN)?;
        for (token, port) in &mut self.published {
            port.deaf = false;
            events.add(&port.socket, *token, EventFlags::IN)?;
        }
        events.add(&self.timer, TIMER, EventFlags::IN)
    }

    /// Takes the clients of one more port from now on; without `events` from the activation on.
    ///
    /// # Errors
    /// There are as many as there may be, or the host has refused.
    pub fn publish(&mut self, port: Published, events: Option<&Events<'_>>) -> io::Result<()> {
        let free = |token: &u32| !self.published.contains_key(token);
        let token = (FIRST_PUBLISHED..).take(MAX_PORTS).find(free);
        let token =
            token.ok_or_else(|| io::Error::other(format!("{MAX_PORTS} ports are published already")))?;
        if let Some(events) = events {
            events.add(&port.socket, token, EventFlags::IN)?;
        }
        self.published.insert(token, port);
        Ok(())
    }

    /// Sees to it that the timer runs.
    fn arm(&mut self, after: Duration) {
        let value = Timespec {
            tv_sec: after.as_secs() as i64,
            // Zero would stop it.
            tv_nsec: i64::from(after.subsec_nanos()).max(1),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // Fails only for a time that is not valid.
        self.armed = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok();
    }

    /// The timer will look at all deadlines. All are equally far away, so that one that is running is soon enough.
    fn expect(&mut self) {
        if !self.armed {
            self.arm(self.patience);
        }
    }

    fn accept(&mut self, events: &Events<'_>) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(_) if self.connections.is_full() => count(&self.counters.refused),
                Ok(client) => self.greet(client, events),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                // No descriptor or no memory, and the client still waits. Others may go meanwhile.
                Err(_) => {
                    self.deaf = events.modify(&self.listener, LISTENER, EventFlags::empty()).is_ok();
                    return self.expect();
                }
            }
        }
    }

    /// The clients of a published port that wait.
    fn accept_published(&mut self, token: u32, events: &Events<'_>) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let Some(port) = self.published.get_mut(&token) else { return };
            match rustix::net::accept_with(&port.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(client) if self.connections.is_full_for_ports() => {
                    socket::reset(&client);
                    count(&self.counters.refused);
                }
                Ok(client) => {
                    let (guest, preface) = (port.guest_port, Arc::clone(&port.preface));
                    self.connect(client, guest, preface, events);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::NOMEM | Errno::NOBUFS | Errno::MFILE | Errno::NFILE) => {
                    port.deaf = events.modify(&port.socket, token, EventFlags::empty()).is_ok();
                    return self.expect();
                }
                // Of the client, which has gone (accept(2)).
                Err(_) => {}
            }
        }
    }

    /// Joins a client of a published port to the guest's port, and gives the connection's token. `None`: the host has refused.
    fn connect(
        &mut self,
        socket: OwnedFd,
        guest: u32,
        preface: Arc<[u8]>,
        events: &Events<'_>,
    ) -> Option<u32> {
        let token = self.connections.token();
        let pair = Pair { host: token, guest };
        let mut connection = Connection::published(socket, pair, preface, Instant::now() + self.patience);
        connection.busy = Some(self.counters.activity.begin());
        events.add(connection.socket(), token, connection.interest()).ok()?;
        self.connections.insert(token, connection);
        self.connections.name(token, pair);
        self.connections.queue(token);
        self.expect();
        Some(token)
    }

    fn greet(&mut self, socket: OwnedFd, events: &Events<'_>) {
        let token = self.connections.token();
        let mut connection = Connection::from_client(socket, Instant::now() + self.patience);
        connection.busy = Some(self.counters.activity.begin());
        // What the client has said already is an event as well.
        if events.add(connection.socket(), token, connection.interest()).is_ok() {
            self.connections.insert(token, connection);
            self.expect();
        }
    }

    /// The socket of a connection is ready.
    fn socket_ready(&mut self, token: u32, flags: EventFlags, events: &Events<'_>) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let buffering = connection.is_buffering();
        let mut verdict = connection.ready(flags, self.patience);
        if verdict == Verdict::Keep && connection.is_greeting() {
            match greeting::read(connection.socket()) {
                Greeting::Connect(port) => {
                    let pair = Pair { host: token, guest: port };
                    connection.request(pair);
                    self.connections.name(token, pair);
                }
                Greeting::Incomplete => {}
                Greeting::Invalid => {
                    count(&self.counters.refused);
                    verdict = Verdict::Close;
                }
            }
        }
        self.settle(token, verdict, buffering, events);
    }

    /// Carries out what has become of a connection that was `buffering` before or not.
    fn settle(&mut self, token: u32, verdict: Verdict, buffering: bool, events: &Events<'_>) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let changed = connection.is_buffering() != buffering;
        let waits = connection.deadline.is_some();
        let watched = !changed || events.modify(connection.socket(), token, connection.interest()).is_ok();
        match verdict {
            Verdict::Keep | Verdict::Forget if watched => {
                if verdict == Verdict::Forget
                    && let Some(pair) = connection.pair()
                {
                    self.connections.forget_pair(pair);
                }
                self.connections.queue(token);
                if waits {
                    self.expect();
                }
            }
            Verdict::Close => drop(self.connections.remove(token)),
            _ => self.reset(token),
        }
    }

    /// Ends a connection, and tells the guest if it knows of it.
    fn reset(&mut self, token: u32) {
        let known = self.connections.remove(token).and_then(|connection| connection.known());
        if let Some(pair) = known {
            self.owe_reset(Reset { pair, kind: STREAM });
        }
    }

    fn owe_reset(&mut self, reset: Reset) {
        if !self.connections.push_reset(reset) {
            count(&self.counters.dropped);
        }
    }

    /// Gives up what has waited for too long, and looks again at the next deadline.
    fn sweep(&mut self, events: &Events<'_>) {
        let now = Instant::now();
        let late = |(token, connection): (u32, &Connection)| {
            connection.deadline.is_some_and(|deadline| deadline <= now).then_some(token)
        };
        let expired: Vec<u32> = self.connections.iter().filter_map(late).collect();
        for token in expired {
            count(&self.counters.expired);
            self.reset(token);
        }
        if self.deaf {
            self.deaf = events.modify(&self.listener, LISTENER, EventFlags::IN).is_err();
        }
        for (token, port) in self.published.iter_mut().filter(|(_, port)| port.deaf) {
            port.deaf = events.modify(&port.socket, *token, EventFlags::IN).is_err();
        }
        self.peers.expire(now);
        let next = self.connections.iter().filter_map(|(_, connection)| connection.deadline).min();
        if let Some(next) = next {
            self.arm(next.saturating_duration_since(now));
        } else if self.deaf || !self.peers.is_empty() || self.published.values().any(|port| port.deaf) {
            self.expect();
        }
    }
}

impl Device for Vsock {
    fn info(&self) -> Info {
        Info {
            id: VIRTIO_ID_VSOCK,
            name: "vsock",
            features: 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC,
            // RX, TX, events. Linux fills the first with buffers of 4 KiB, and the last with 8 of a word.
            queues: &[128, 128, 16],
        }
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, active: Active, events: &Events<'_>) -> Result<(), DeviceError> {
        self.watch(events).map_err(|source| DeviceError::Host { what: "waiting for clients", source })?;
        self.active = Some(active);
        Ok(())
    }

    fn deactivate(&mut self, events: &Events<'_>) {
        // Each is missing where the activation has failed half-way.
        let _ = events.remove(&self.listener);
        for port in self.published.values() {
            let _ = events.remove(&port.socket);
        }
        let _ = events.remove(&self.timer);
        self.connections.clear();
        self.peers.clear();
        self.active = None;
        self.used = [false; 2];
    }

    fn notified(&mut self, queue: usize, events: &Events<'_>) -> Result<(), DeviceError> {
        match queue {
            RX => self.hush()?,
            TX => self.transmit(events)?,
            // Buffers for events, of which there are none: a restored machine resets its connections one by one.
            _ => return Ok(()),
        }
        self.fill(events)?;
        self.signal()
    }

    fn ready(&mut self, token: u32, flags: EventFlags, events: &Events<'_>) -> Result<(), DeviceError> {
        match token {
            LISTENER => self.accept(events),
            TIMER => {
                let mut expirations = [0; 8];
                let _ = rustix::io::read(&self.timer, &mut expirations);
                self.armed = false;
                self.sweep(events);
            }
            token if peers::TOKENS.contains(&token) => self.peer_ready(token, flags, events),
            token => match self.published.get(&token).map(|port| port.transport) {
                Some(Transport::Tcp) => self.accept_published(token, events),
                Some(Transport::Udp) => self.take_datagrams(token, events),
                None => self.socket_ready(token, flags, events),
            },
        }
        self.fill(events)?;
        self.signal()
    }

    fn resume(&mut self, events: &Events<'_>) -> Result<(), DeviceError> {
        for (token, connection) in self.connections.iter() {
            // Tells the edges again that came when nobody was there to see them.
            events
                .modify(connection.socket(), token, connection.interest())
                .map_err(|source| DeviceError::Host { what: "waiting for a client", source })?;
        }
        Ok(())
    }

    fn configure(&mut self, setting: Setting, events: &Events<'_>) -> Result<(), DeviceError> {
        match setting {
            Setting::Publish(port) => {
                // While it is not active its clients wait.
                let events = self.active.is_some().then_some(events);
                self.publish(port, events)
                    .map_err(|source| DeviceError::Host { what: "publishing a port", source })
            }
            Setting::Unpublish(transport, address) => {
                // Closed, it is no longer waited for. The connections that it has made by TCP go on.
                let place = (transport, address);
                for (token, _) in self.published.extract_if(.., |_, port| port.place() == place) {
                    self.peers.forget(token);
                }
                Ok(())
            }
            Setting::Policy(_) | Setting::Limits(_) | Setting::Resolvers(_) => Err(DeviceError::NoSetting),
        }
    }

    fn save(&self) -> Saved {
        let known = self.connections.iter().filter_map(|(_, connection)| connection.known());
        let mut resets: Vec<Reset> = known.map(|pair| Reset { pair, kind: STREAM }).collect();
        resets.extend(self.connections.resets());
        resets.sort_unstable();
        resets.dedup();
        let state = VsockState { cid: self.cid, next_port: self.connections.next_token(), resets };
        Saved { device: State::Vsock(state), queues: self.active.as_ref().map(Active::save) }
    }

    fn restore(
        &mut self,
        state: State,
        active: Option<Active>,
        events: &Events<'_>,
    ) -> Result<(), DeviceError> {
        let unsound = |why: &str| DeviceError::State { device: "vsock", why: why.to_owned() };
        let State::Vsock(state) = state else { return Err(unsound("it is of another device")) };
        if state.cid != self.cid {
            return Err(unsound("it is of another CID"));
        }
        if !TOKENS.contains(&state.next_port) {
            return Err(unsound("a port out of range"));
        }
        if state.resets.len() > MAX_CONNECTIONS + MAX_RESETS {
            return Err(unsound("too many connections"));
        }
        if let Some(active) = active {
            self.activate(active, events)?;
        }
        self.connections.restore(state.next_port, state.resets);
        Ok(())
    }
}
