//! One TCP connection: its end towards the guest, which smoltcp keeps, and its end towards the host.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::IpListenEndpoint;

use super::super::limits::Rates;
use super::super::socket;
use super::names::Stream;
use super::pages::Pages;

/// Bytes that one turn moves each way, so that no flow keeps the others waiting.
const TURN: usize = 512 * 1024;

/// A flow's four-tuple; the guest's address is of the same version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) guest_port: u16,
}

impl Key {
    pub(super) fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// What a flow waits for.
pub(super) enum Stage {
    /// For the host's connect(). The guest's SYN is answered when it has ended.
    Connecting { syn: Vec<u8> },
    /// For the name of the server in the guest's first bytes, none of which has gone to the host.
    Naming,
    /// For bytes.
    Open,
}

/// Who the guest talks to.
pub(super) enum Peer {
    /// Somebody whom the host reaches.
    Host(OwnedFd),
    /// The gateway's name server.
    Names(Stream),
    /// It was reset, and the guest is still to be told.
    Gone,
}

/// The guest's end: a set of one, since smoltcp asks all sockets of a set whose segment it is.
pub(super) struct Guest {
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Bytes of its buffers.
    pub(super) size: usize,
    /// Those, which have to be dropped behind the socket.
    _pages: [Pages; 2],
}

impl Guest {
    /// An end that waits for the SYN to `destination`, with two buffers of `size` bytes. Memory is taken as they fill.
    pub(super) fn new(destination: SocketAddr, size: usize) -> Result<Self, Errno> {
        let pages = [Pages::new(size)?, Pages::new(size)?];
        // SAFETY: called once for each, and they are behind the socket in the same structure, whose fields are dropped in order.
        let (received, to_send) = unsafe { (pages[0].take(), pages[1].take()) };
        let mut socket = Socket::new(SocketBuffer::new(received), SocketBuffer::new(to_send));
        // One acknowledgement for all frames that came at once, right after what they brought went to the host.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let endpoint = IpListenEndpoint { addr: Some(destination.ip().into()), port: destination.port() };
        // It fails for port 0 alone, which no segment of a flow has; such a socket answers nothing.
        let _ = socket.listen(endpoint);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self { sockets, handle, size: size * 2, _pages: pages })
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// See the module.
#[allow(clippy::struct_excessive_bools, reason = "what is known of either end, each by itself")]
pub(super) struct Flow {
    pub(super) key: Key,
    pub(super) serial: u32,
    pub(super) stage: Stage,
    pub(super) peer: Peer,
    pub(super) guest: Option<Guest>,
    /// The longest segment to the guest.
    pub(super) mss: u16,
    /// The policy asks for the server's name.
    pub(super) to_be_named: bool,
    /// The address is this machine's own.
    pub(super) own: bool,
    /// The names that the guest knew the address by when it connected.
    pub(super) names: Vec<String>,
    /// The name that its first bytes showed.
    pub(super) server_name: Option<String>,
    /// When it is ended if it is not further by then.
    pub(super) deadline: Option<Instant>,
    /// The timer's idea of its next deadline.
    pub(super) armed: Option<Instant>,
    /// It is queued for a turn.
    pub(super) ready: bool,
    /// The host's socket may have something.
    pub(super) readable: bool,
    /// And may take something.
    pub(super) writable: bool,
    /// Its peer has ended, or there was an error: no short read says that there is no more.
    pub(super) host_ended: bool,
    /// All that the host's peer has sent is in the guest's end.
    pub(super) host_done: bool,
    /// And it ended with a reset, which the guest gets behind it.
    host_reset: bool,
    /// The guest has sent its FIN.
    pub(super) guest_ended: bool,
    /// And the host's peer has been told.
    pub(super) guest_done: bool,
    /// Both have ended, and the guest has been told.
    pub(super) told_all: bool,
}

/// Whether a flow has more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Its turn was too short.
    More,
    /// The guest has used what it may, for the moment.
    Limited,
    /// Nothing until something happens.
    Idle,
}

impl Flow {
    pub(super) fn new(key: Key, serial: u32, stage: Stage, peer: Peer, mss: u16) -> Self {
        Self {
            key,
            serial,
            stage,
            peer,
            guest: None,
            mss,
            to_be_named: false,
            own: false,
            names: Vec::new(),
            server_name: None,
            deadline: None,
            armed: None,
            ready: false,
            readable: true,
            writable: true,
            host_ended: false,
            host_done: false,
            host_reset: false,
            guest_ended: false,
            guest_done: false,
            told_all: false,
        }
    }

    pub(super) fn state(&mut self) -> State {
        self.guest.as_mut().map_or(State::Closed, |guest| guest.socket().state())
    }

    /// After segments of the guest.
    pub(super) fn note_end(&mut self) {
        self.guest_ended |=
            matches!(self.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
    }

    /// Resets both ends: the host's at once, whenever the guest takes its own.
    pub(super) fn abort(&mut self) {
        if let Some(guest) = &mut self.guest {
            guest.socket().abort();
        }
        self.reset_host();
        if matches!(self.peer, Peer::Host(_)) {
            self.peer = Peer::Gone;
        }
        self.stage = Stage::Open;
        self.deadline = None;
        self.host_done = true;
        self.guest_done = true;
    }

    /// Makes the end of this flow a reset for the host's peer.
    pub(super) fn reset_host(&self) {
        if let Peer::Host(socket) = &self.peer {
            socket::reset_at_close(socket);
        }
    }

    /// Moves bytes between both ends, for as long as there are some and they are taken.
    pub(super) fn pump(&mut self, now: Instant, rates: &mut Rates) -> Turn {
        let (Some(guest), Peer::Host(host)) = (&mut self.guest, &self.peer) else {
            return Turn::Idle;
        };
        let socket = guest.socket();
        let (mut to_host, mut to_guest) =
            (TURN.min(rates.to_host.left(now)), TURN.min(rates.to_guest.left(now)));
        while self.writable && to_host > 0 && socket.can_recv() {
            let sent = socket.recv(|bytes| {
                let bytes = &bytes[..bytes.len().min(to_host)];
                match rustix::net::send(host, bytes, SendFlags::NOSIGNAL) {
                    Ok(sent) => (sent, Ok(sent)),
                    Err(error) => (0, Err(error)),
                }
            });
            match sent {
                Ok(Ok(sent)) => {
                    to_host -= sent;
                    rates.to_host.spend(sent);
                }
                Ok(Err(Errno::AGAIN)) => self.writable = false,
                Ok(Err(Errno::INTR)) => {}
                // What it has sent before may still be there.
                Ok(Err(_)) => {
                    (self.writable, self.readable) = (false, true);
                    self.host_reset = true;
                }
                Err(_) => break,
            }
        }
        if self.guest_ended && !self.guest_done && !socket.can_recv() {
            // An error is one of the connection, which reading will tell.
            let _ = rustix::net::shutdown(host, Shutdown::Write);
            self.guest_done = true;
        }
        while self.readable && to_guest > 0 && !self.host_done && socket.can_send() {
            let read = socket.send(|buffer| {
                let len = buffer.len().min(to_guest);
                match rustix::net::recv(host, &mut buffer[..len], RecvFlags::empty()) {
                    Ok((read, _)) => (read, Ok((read, read < len))),
                    Err(error) => (0, Err(error)),
                }
            });
            match read {
                Ok(Ok((0, _))) => {
                    self.host_done = true;
                    if !self.host_reset {
                        socket.close();
                    }
                }
                Ok(Ok((read, short))) => {
                    to_guest -= read;
                    rates.to_guest.spend(read);
                    // An edge will tell of more.
                    self.readable = !short || self.host_ended;
                }
                Ok(Err(Errno::AGAIN)) => self.readable = false,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(_)) => {
                    self.host_done = true;
                    self.host_reset = true;
                }
                Err(_) => break,
            }
        }
        if self.host_reset && self.host_done && socket.send_queue() == 0 {
            self.abort();
            return Turn::Idle;
        }
        if to_host > 0 && to_guest > 0 {
            Turn::Idle
        } else if rates.to_host.left(now) == 0 || rates.to_guest.left(now) == 0 {
            Turn::Limited
        } else {
            Turn::More
        }
    }

    /// Whether all is done, once there is nothing left to send to the guest.
    pub(super) fn is_over(&mut self) -> bool {
        let Some(guest) = &mut self.guest else { return false };
        let socket = guest.socket();
        match socket.state() {
            // A reset that is still to be sent keeps the addresses.
            State::Closed if socket.local_endpoint().is_none() => {
                let orderly = self.guest_ended && self.host_done;
                if !orderly {
                    self.reset_host();
                }
                // What the guest has sent before its FIN may still wait for the host.
                !orderly || self.guest_done
            }
            // A frame that went to the guest is not lost on the way: nobody waits for its FIN to come again.
            State::TimeWait => self.guest_done,
            // The guest has reset it before it was there.
            State::Listen => {
                self.reset_host();
                true
            }
            _ => false,
        }
    }

    /// smoltcp forgets what it has got when it has been in this state for ten seconds, the host's slow reader or not: it gets no
    /// turn to do so.
    pub(super) fn waits_for_host_alone(&mut self) -> bool {
        self.state() == State::TimeWait && !self.guest_done
    }
}
