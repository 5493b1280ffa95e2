//! One connection: a socket of the host, and what guest and host have told each other about it.
//!
//! ```text
//!   client: greeting ──CONNECT line──▶ requesting ──RESPONSE──▶ open        guest: open (RESPONSE owed)
//!   client of a published port: requesting ──RESPONSE──▶ open, its preface first
//!   open ──RST of the guest, and the client has not read everything yet──▶ flushing
//! ```
//!
//! An open connection ends, with an RST to the guest, when both of its directions have ended. The direction to the guest ends
//! with the host's end of file (the guest is told by SHUTDOWN), or when the guest will receive no more. The direction to
//! the host ends when the guest will send no more and all is written, or when the client has gone.
//!
//! A guest that closes a published connection without an end of file before has broken it off: its client sees a reset then, as
//! of a server that it would reach by TCP, and so it does where the guest takes no connection at all.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::net::Shutdown;
use vm_memory::VolatileSlice;

use super::activity::Busy;
use super::connections::Pair;
use super::packet::{Buffers, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::socket;
use super::to_host::{BUFFER, ToHost};

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    phase: Phase,
    /// Of a published port: what the guest gets before what the client sends.
    preface: Option<Preface>,
    pair: Option<Pair>,
    to_host: ToHost,
    to_guest: ToGuest,
    /// Answers that the guest waits for; a RESPONSE tells the credit as well.
    owed: Option<Op>,
    /// The client has closed its socket.
    hung_up: bool,
    /// The guest has closed a published connection without an end of file before.
    broken_off: bool,
    /// Of one that a client has opened, until that has gone: it keeps the machine from being idle.
    pub(super) busy: Option<Busy>,
    /// It is among those whose turn comes; kept by [`Connections`](super::connections::Connections).
    pub(super) queued: bool,
    /// When it is given up. There while it waits for something that has to come soon.
    pub(super) deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The client has not said its line yet.
    Greeting,
    /// The guest has not answered; `told` is whether it has been asked.
    Requesting {
        told: bool,
    },
    Open,
    /// The guest has forgotten the connection, and the client has not read everything yet.
    Flushing,
}

/// What the guest gets first.
#[derive(Debug)]
struct Preface {
    bytes: Arc<[u8]>,
    sent: usize,
}

/// To the guest. Counters are modulo 2^32.
#[derive(Debug)]
struct ToGuest {
    sent: u32,
    /// Of the guest's last packet.
    buf_alloc: u32,
    fwd_cnt: u32,
    /// The socket may have something: no read has failed since the last event.
    readable: bool,
    /// The guest has been asked for credit since it had none.
    asked: bool,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// End of file, which the guest is still to be told.
    Seen,
    Told,
    /// The guest receives no more.
    Refused,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// It stays, but not for the guest.
    Forget,
    /// It ends, and the guest is told.
    Reset,
    /// It ends, and the guest does not know it.
    Close,
}

/// What a connection has for the guest.
#[derive(Debug)]
pub(super) enum Next {
    Packet(Header),
    Nothing,
    /// It ends, and the guest is told.
    Reset,
}

impl Connection {
    /// A client of the host that has yet to say what it wants.
    pub(super) fn from_client(socket: OwnedFd, deadline: Instant) -> Self {
        Self::new(socket, Phase::Greeting, Some(deadline))
    }

    /// A client of a published port.
    pub(super) fn published(socket: OwnedFd, pair: Pair, preface: Arc<[u8]>, deadline: Instant) -> Self {
        let mut connection = Self::new(socket, Phase::Greeting, Some(deadline));
        connection.preface = Some(Preface { bytes: preface, sent: 0 });
        connection.request(pair);
        connection
    }

    /// The guest asks for `socket` by `header`.
    pub(super) fn from_guest(socket: OwnedFd, header: &Header) -> Self {
        let mut connection = Self::new(socket, Phase::Open, None);
        connection.pair = Some(header.pair_from_guest());
        connection.to_guest.buf_alloc = header.buf_alloc;
        connection.to_guest.fwd_cnt = header.fwd_cnt;
        connection.owed = Some(Op::Response);
        connection
    }

    fn new(socket: OwnedFd, phase: Phase, deadline: Option<Instant>) -> Self {
        let to_guest =
            ToGuest { sent: 0, buf_alloc: 0, fwd_cnt: 0, readable: false, asked: false, end: End::Open };
        Self {
            socket,
            phase,
            preface: None,
            pair: None,
            to_host: ToHost::default(),
            to_guest,
            owed: None,
            hung_up: false,
            broken_off: false,
            busy: None,
            queued: false,
            deadline,
        }
    }

    /// As if so much had gone both ways already.
    #[cfg(test)]
    pub(super) fn count_from(&mut self, counter: u32) {
        self.to_host.count_from(counter);
        (self.to_guest.sent, self.to_guest.fwd_cnt) = (counter, counter);
    }

    /// How many bytes it keeps for its client.
    #[cfg(any(test, fuzzing))]
    pub(super) fn kept(&self) -> usize {
        self.to_host.kept()
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Its ports, once they are known.
    pub(super) fn pair(&self) -> Option<Pair> {
        self.pair
    }

    /// Its ports, where the guest knows of it.
    pub(super) fn known(&self) -> Option<Pair> {
        self.pair.filter(|_| matches!(self.phase, Phase::Requesting { told: true } | Phase::Open))
    }

    pub(super) fn is_greeting(&self) -> bool {
        self.phase == Phase::Greeting
    }

    /// The client wants the guest's port.
    pub(super) fn request(&mut self, pair: Pair) {
        self.pair = Some(pair);
        self.phase = Phase::Requesting { told: false };
    }

    /// What to wait for. Each is told once: a client whose data the guest does not take wakes nobody.
    pub(super) fn interest(&self) -> EventFlags {
        let out = if self.is_buffering() { EventFlags::OUT } else { EventFlags::empty() };
        EventFlags::IN | EventFlags::ET | out
    }

    /// Whether the client is to read before the guest may send on.
    pub(super) fn is_buffering(&self) -> bool {
        self.to_host.is_buffering()
    }

    /// The socket is ready. A client that has gone with data still on its way to the guest has `patience` for each part of it.
    pub(super) fn ready(&mut self, flags: EventFlags, patience: Duration) -> Verdict {
        self.to_guest.readable |= flags.contains(EventFlags::IN);
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) && !self.hung_up {
            self.hang_up();
            // Without its own end of file this may be the guest's end of file and the client's, of which neither has gone.
            if !self.to_host.has_ended() && self.phase == Phase::Open {
                self.deadline = Some(Instant::now() + patience);
            }
        }
        if flags.contains(EventFlags::OUT) && self.to_host.flush(&self.socket).is_err() {
            self.fail();
        }
        self.verdict()
    }

    /// A packet of the guest for this connection.
    pub(super) fn packet(&mut self, op: Op, header: &Header, payload: &[VolatileSlice<'_>]) -> Verdict {
        self.to_guest.buf_alloc = header.buf_alloc;
        self.to_guest.fwd_cnt = header.fwd_cnt;
        match (self.phase, op) {
            (Phase::Requesting { .. }, Op::Reset) => return Verdict::Close,
            (Phase::Requesting { told: true }, Op::Response) => self.accepted(),
            (Phase::Open, Op::Reset) => {
                self.phase = Phase::Flushing;
                return match self.verdict() {
                    Verdict::Keep => Verdict::Forget,
                    verdict => verdict,
                };
            }
            (Phase::Open, Op::Data) => match self.to_host.receive(&self.socket, payload) {
                Ok(true) => {}
                Ok(false) => return Verdict::Reset,
                Err(_) => self.fail(),
            },
            (Phase::Open, Op::Shutdown) => self.shut_down(header.flags),
            (Phase::Open, Op::CreditUpdate) => {}
            (Phase::Open, Op::CreditRequest) => self.owed = self.owed.or(Some(Op::CreditUpdate)),
            _ => return Verdict::Reset,
        }
        self.verdict()
    }

    /// What becomes of it as things are.
    fn verdict(&self) -> Verdict {
        let over = match self.phase {
            Phase::Greeting | Phase::Requesting { .. } => self.hung_up,
            Phase::Open => self.is_over(),
            Phase::Flushing => self.hung_up || !self.is_buffering(),
        };
        match (over, self.known()) {
            (false, _) => Verdict::Keep,
            (true, Some(_)) => Verdict::Reset,
            (true, None) => Verdict::Close,
        }
    }

    /// Whether both directions have ended.
    fn is_over(&self) -> bool {
        let ended = self.to_host.has_ended() || self.broken_off;
        let to_host_ended = self.hung_up || (ended && !self.is_buffering());
        to_host_ended && self.to_guest.end != End::Open
    }

    /// The client has gone, or both directions of its socket have ended. Nobody waits for the guest any more, so that one which
    /// does not take the rest must not go on for ever by it.
    fn hang_up(&mut self) {
        self.hung_up = true;
        self.busy = None;
    }

    /// The socket does not work any more: both directions have ended.
    fn fail(&mut self) {
        self.hang_up();
        self.to_guest.end = End::Refused;
        self.to_host.discard();
    }

    fn accepted(&mut self) {
        self.phase = Phase::Open;
        self.deadline = None;
        if self.preface.is_some() {
            return;
        }
        let line = format!("OK {}\n", self.pair.map_or(0, |pair| pair.host));
        // The first bytes of a socket have room, unless its client has made that room tiny.
        if !matches!(socket::send(&self.socket, line.as_bytes()), Ok(sent) if sent == line.len()) {
            self.fail();
        }
    }

    fn shut_down(&mut self, flags: u32) {
        let closed = flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND) == SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        self.broken_off |= closed && self.preface.is_some() && !self.to_host.has_ended();
        if flags & SHUTDOWN_RECEIVE != 0 && self.to_guest.end != End::Refused {
            self.to_guest.end = End::Refused;
            socket::end(&self.socket, Shutdown::Read);
        }
        if flags & SHUTDOWN_SEND != 0 && !self.broken_off {
            self.to_host.end(&self.socket);
        }
    }

    /// The preface, as long as not all of it is sent.
    fn preface(&self) -> Option<&Preface> {
        self.preface.as_ref().filter(|preface| preface.sent < preface.bytes.len())
    }

    /// How much the guest can take, in bytes. What it says is not trusted to make sense: the least is none.
    fn credit(&self) -> u32 {
        let on_its_way = self.to_guest.sent.wrapping_sub(self.to_guest.fwd_cnt);
        self.to_guest.buf_alloc.saturating_sub(on_its_way)
    }

    /// Whether it may have a packet for the guest.
    pub(super) fn wants_turn(&self) -> bool {
        match self.phase {
            Phase::Greeting | Phase::Flushing => false,
            Phase::Requesting { told } => !told,
            Phase::Open => {
                let to_guest = &self.to_guest;
                let something = to_guest.readable || self.preface().is_some();
                let readable = something && (self.credit() > 0 || !to_guest.asked);
                self.owed.is_some()
                    || self.to_host.owes_credit()
                    || to_guest.end == End::Seen
                    || (to_guest.end == End::Open && readable)
            }
        }
    }

    /// The next packet for the guest `cid`, with its payload in `buffers`.
    pub(super) fn next(&mut self, cid: u64, buffers: &Buffers<'_>, patience: Duration) -> Next {
        let Some(pair) = self.pair else { return Next::Nothing };
        let mut header = Header::to_guest(cid, pair, Op::CreditUpdate);
        let op = match self.phase {
            Phase::Requesting { told: false } => {
                self.phase = Phase::Requesting { told: true };
                Op::Request
            }
            Phase::Open => {
                if let Some(op) = self.owed.take() {
                    op
                } else if let Some(op) = self.read(buffers, &mut header.len) {
                    if self.deadline.is_some() {
                        self.deadline = Some(Instant::now() + patience);
                    }
                    op
                } else if self.is_over() {
                    return Next::Reset;
                } else if self.to_guest.end == End::Seen {
                    self.to_guest.end = End::Told;
                    header.flags = SHUTDOWN_SEND;
                    Op::Shutdown
                } else if self.to_host.owes_credit() {
                    Op::CreditUpdate
                } else {
                    return Next::Nothing;
                }
            }
            _ => return Next::Nothing,
        };
        header.op = op as u16;
        header.buf_alloc = BUFFER as u32;
        header.fwd_cnt = self.to_host.tell();
        Next::Packet(header)
    }

    /// Reads what the socket has into `buffers`, and tells what kind of packet it makes.
    fn read(&mut self, buffers: &Buffers<'_>, len: &mut u32) -> Option<Op> {
        let prefaced = self.preface().is_some();
        if !(self.to_guest.readable || prefaced) || self.to_guest.end != End::Open {
            return None;
        }
        let mut left = self.credit() as usize;
        if left == 0 {
            return (!std::mem::replace(&mut self.to_guest.asked, true)).then_some(Op::CreditRequest);
        }
        self.to_guest.asked = false;
        let mut total = 0;
        for slice in buffers.payload() {
            let wanted = left.min(slice.len());
            if wanted == 0 {
                break;
            }
            if let Some(preface) = self.preface.as_mut().filter(|_| prefaced) {
                let rest = &preface.bytes[preface.sent..];
                let copied = wanted.min(rest.len());
                slice.copy_from(&rest[..copied]);
                preface.sent += copied;
                total += copied;
                left -= copied;
                continue;
            }
            match socket::receive_to_guest(&self.socket, slice, wanted) {
                Ok(0) => self.to_guest.end = End::Seen,
                Ok(read) => {
                    total += read;
                    left -= read;
                    if read == wanted {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.to_guest.readable = false,
                // A client that has closed its socket without reading everything: ECONNRESET, after what it has sent.
                Err(_) => {
                    self.to_guest.end = End::Seen;
                    self.hang_up();
                }
            }
            break;
        }
        *len = total as u32;
        self.to_guest.sent = self.to_guest.sent.wrapping_add(total as u32);
        (total > 0).then_some(Op::Data)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.preface.is_some() && !self.to_host.has_ended() {
            socket::reset(&self.socket);
        }
    }
}
