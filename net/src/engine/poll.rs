//! What the engine waits for: its sockets and one deadline, behind one descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Events that one [`Poll::events`] takes.
const EVENTS: usize = 128;

/// Whose socket it is that something has happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A TCP flow.
    Tcp,
    /// What sends and gets datagrams of one port of the guest.
    Datagram,
    /// A question to a name server.
    Dns,
    /// The deadline.
    Timer,
}

/// A socket's name in the engine: where its owner keeps it. Slots are used again, serial numbers are not (within 2^24), so that an
/// event of a socket that is gone is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) owner: Owner,
    pub(super) slot: usize,
    pub(super) serial: u32,
}

impl Token {
    fn to_bits(self) -> u64 {
        (self.owner as u64) << 56 | u64::from(self.serial & 0xff_ffff) << 32 | self.slot as u64
    }

    fn from_bits(bits: u64) -> Self {
        let owner = match bits >> 56 {
            0 => Owner::Tcp,
            1 => Owner::Datagram,
            2 => Owner::Dns,
            _ => Owner::Timer,
        };
        Self { owner, slot: bits as u32 as usize, serial: (bits >> 32) as u32 & 0xff_ffff }
    }
}

/// What has happened to a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) token: Token,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer sends no more, or an error is there to be read.
    pub(super) ended: bool,
}

/// The epoll descriptor and the timer in it. Sockets are watched for edges: what is ready stays ready until a call says EAGAIN.
pub(super) struct Poll {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer goes off.
    armed: Option<Instant>,
    serial: u32,
}

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let token = Token { owner: Owner::Timer, slot: 0, serial: 0 };
        epoll::add(&epoll, &timer, EventData::new_u64(token.to_bits()), EventFlags::IN)?;
        Ok(Self { epoll, timer, armed: None, serial: 0 })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// A serial number for what gets a slot.
    pub(super) fn serial(&mut self) -> u32 {
        self.serial = (self.serial + 1) & 0xff_ffff;
        self.serial
    }

    /// Watches `socket` until it is closed.
    pub(super) fn watch(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token.to_bits()), flags)?)
    }

    /// What has happened since the last call, up to a bound; the rest stays. The timer's own event is not among it.
    pub(super) fn events(&mut self, events: &mut Vec<Event>) -> bool {
        events.clear();
        // On the stack: a list of them could not go to another thread with the engine.
        let mut buffer = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((ready, _)) = epoll::wait(&self.epoll, &mut buffer[..], Some(&zero)) else {
            return false;
        };
        let mut went_off = false;
        for event in ready.iter() {
            let token = Token::from_bits(event.data.u64());
            if token.owner == Owner::Timer {
                went_off = true;
                continue;
            }
            let flags = event.flags;
            let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            events.push(Event {
                token,
                readable: ended || flags.contains(EventFlags::IN),
                writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
                ended,
            });
        }
        let more = ready.len() == EVENTS;
        if went_off {
            // Only a new setting makes it unreadable.
            self.armed = None;
            self.set(None);
        }
        more
    }

    /// Makes the descriptor readable at `deadline`, if not before: an earlier one that is set already stays, since finding nothing to
    /// do once costs less than setting the timer each time.
    pub(super) fn arm(&mut self, now: Instant, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        self.armed = Some(deadline);
        self.set(Some(deadline.saturating_duration_since(now)));
    }

    fn set(&self, after: Option<Duration>) {
        // Relative, so that nobody asks for the time: rustix would look for the vDSO by a prctl that no filter of seccomp allows.
        let at = match after {
            None => Timespec { tv_sec: 0, tv_nsec: 0 },
            // Zero would stop it.
            Some(after) => Timespec {
                tv_sec: after.as_secs() as i64,
                tv_nsec: i64::from(after.subsec_nanos()).max(i64::from(after.as_secs() == 0)),
            },
        };
        let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        // It fails for values that it is never given.
        let _ = timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: interval, it_value: at },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_the_kernel() {
        for owner in [Owner::Tcp, Owner::Datagram, Owner::Dns, Owner::Timer] {
            let token = Token { owner, slot: 4095, serial: 0xab_cdef };
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
    }

    #[test]
    fn a_deadline_makes_it_readable_and_a_later_one_does_not() {
        let mut poll = Poll::new().unwrap();
        let now = Instant::now();
        poll.arm(now, Some(now));
        let mut events = Vec::new();
        let wait = |poll: &Poll, milliseconds: i32| {
            let mut fds = [rustix::event::PollFd::new(&poll.epoll, rustix::event::PollFlags::IN)];
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap()
        };
        assert_eq!(wait(&poll, 999), 1);
        poll.events(&mut events);
        assert!(events.is_empty());
        assert_eq!(wait(&poll, 0), 0, "it was seen");
        poll.arm(now, Some(now + Duration::from_hours(1)));
        assert_eq!(wait(&poll, 0), 0);
    }
}
