//! Questions of the guest that go to the host's name servers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use slab::Slab;

use super::poll::{Event, Owner, Token};
use super::timers::Timers;
use super::{Core, socket};
use crate::dns::{MAX_TCP, MAX_UDP, Names, Question, Transport};

/// Questions that may be under way: these, and an eighth of the descriptors. One more is answered SERVFAIL.
const QUESTIONS: usize = 256;
/// How long a name server may take for a datagram.
const PATIENCE: Duration = Duration::from_secs(2);
/// And for a stream.
const PATIENCE_TCP: Duration = Duration::from_secs(4);
/// How often a question is sent: twice to each name server, within this.
const ATTEMPTS: usize = 6;

/// Who has asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// A datagram from `guest` to `gateway`.
    Datagram { guest: SocketAddr, gateway: SocketAddr },
    /// A flow to the gateway.
    Stream { slot: usize, serial: u32 },
}

struct Pending {
    serial: u32,
    asker: Asker,
    question: Question,
    message: Vec<u8>,
    /// How many name servers have been asked.
    attempt: usize,
    socket: Option<OwnedFd>,
    /// By TCP: how much of `message` behind its length has gone, and what has come.
    sent: usize,
    received: Vec<u8>,
    armed: Option<Instant>,
}

/// See the module.
pub(super) struct Dns {
    resolvers: Vec<SocketAddr>,
    pending: Slab<Pending>,
    /// How many of them there may be.
    most: usize,
    timers: Timers,
    /// Answers to be handed on.
    answers: Vec<(Asker, Vec<u8>)>,
}

/// What became of an attempt.
enum Progress {
    Waits,
    Answered(Vec<u8>),
    Failed,
}

impl Dns {
    pub(super) fn new(resolvers: Vec<SocketAddr>) -> Self {
        let most = socket::bounded(QUESTIONS, 1);
        Self { resolvers, pending: Slab::new(), most, timers: Timers::default(), answers: Vec::new() }
    }

    pub(super) fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        self.resolvers = resolvers;
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.timers.clear();
        self.answers.clear();
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether there are answers to be taken.
    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Answers that are there.
    pub(super) fn take_answers(&mut self) -> Vec<(Asker, Vec<u8>)> {
        std::mem::take(&mut self.answers)
    }

    /// Sends a question.
    ///
    /// # Errors
    /// What to answer at once.
    pub(super) fn ask(
        &mut self,
        core: &mut Core,
        message: Vec<u8>,
        question: Question,
        asker: Asker,
    ) -> Result<(), Vec<u8>> {
        if self.resolvers.is_empty() || self.pending.len() >= self.most {
            return Err(Names::servfail(&question));
        }
        let message = match question.transport() {
            Transport::Udp => message,
            Transport::Tcp => {
                let mut framed = (message.len() as u16).to_be_bytes().to_vec();
                framed.extend(message);
                framed
            }
        };
        let slot = self.pending.insert(Pending {
            serial: 0,
            asker,
            question,
            message,
            attempt: 0,
            socket: None,
            sent: 0,
            received: Vec::new(),
            armed: None,
        });
        self.attempt(core, slot);
        Ok(())
    }

    /// Asks the next name server, or gives up.
    fn attempt(&mut self, core: &mut Core, slot: usize) {
        loop {
            let Some(pending) = self.pending.get_mut(slot) else { return };
            self.timers.cancel(slot, &mut pending.armed);
            let attempts = (2 * self.resolvers.len()).min(ATTEMPTS);
            if pending.attempt >= attempts {
                let refusal = Names::servfail(&pending.question);
                self.finish(slot, refusal);
                return;
            }
            let resolver = self.resolvers[pending.attempt % self.resolvers.len()];
            pending.attempt += 1;
            pending.serial = core.poll.serial();
            (pending.sent, pending.received) = (0, Vec::new());
            let transport = pending.question.transport();
            let opened = match transport {
                Transport::Udp => socket::udp_to(&resolver),
                Transport::Tcp => socket::connect(&resolver).map(|(socket, _)| socket),
            };
            let Ok(socket) = opened else { continue };
            let token = Token { owner: Owner::Dns, slot, serial: pending.serial };
            if core.poll.watch(&socket, token).is_err() {
                continue;
            }
            let patience = match transport {
                Transport::Udp => {
                    if rustix::net::send(&socket, &pending.message, SendFlags::NOSIGNAL).is_err() {
                        continue;
                    }
                    PATIENCE
                }
                Transport::Tcp => PATIENCE_TCP,
            };
            pending.socket = Some(socket);
            self.timers.set(slot, &mut pending.armed, Some(core.now + patience));
            return;
        }
    }

    fn finish(&mut self, slot: usize, answer: Vec<u8>) {
        if let Some(mut pending) = self.pending.try_remove(slot) {
            self.timers.cancel(slot, &mut pending.armed);
            self.answers.push((pending.asker, answer));
        }
    }

    /// Something has happened to a socket.
    pub(super) fn event(&mut self, core: &mut Core, event: Event) {
        let slot = event.token.slot;
        let Some(pending) = self.pending.get_mut(slot).filter(|pending| pending.serial == event.token.serial)
        else {
            return;
        };
        // Another may do better than one that says that it cannot.
        let last = pending.attempt >= self.resolvers.len();
        let progress = match pending.question.transport() {
            Transport::Udp => pending.read_datagrams(core, last),
            Transport::Tcp => pending.move_stream(core, last),
        };
        match progress {
            Progress::Waits => {}
            Progress::Answered(answer) => self.finish(slot, answer),
            Progress::Failed => self.attempt(core, slot),
        }
    }

    /// Goes on where a name server has not answered in time.
    pub(super) fn run(&mut self, core: &mut Core) {
        while let Some(slot) = self.timers.due(core.now) {
            if let Some(pending) = self.pending.get_mut(slot) {
                pending.armed = None;
            }
            self.attempt(core, slot);
        }
    }
}

impl Pending {
    fn read_datagrams(&mut self, core: &mut Core, last: bool) -> Progress {
        let Some(socket) = &self.socket else { return Progress::Failed };
        let mut buffer = [0; MAX_UDP];
        loop {
            match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
                Ok((len, _)) => {
                    if let Some(progress) = self.judge(core, &buffer[..len], last) {
                        return progress;
                    }
                }
                Err(Errno::AGAIN) => return Progress::Waits,
                Err(Errno::INTR) => {}
                Err(_) => return Progress::Failed,
            }
        }
    }

    fn move_stream(&mut self, core: &mut Core, last: bool) -> Progress {
        let Some(socket) = &self.socket else { return Progress::Failed };
        while self.sent < self.message.len() {
            match rustix::net::send(socket, &self.message[self.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                // Of one that has not connected yet, too.
                Err(Errno::AGAIN | Errno::NOTCONN) => return Progress::Waits,
                Err(Errno::INTR) => {}
                Err(_) => return Progress::Failed,
            }
        }
        let mut buffer = [0; 4096];
        loop {
            match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Progress::Failed,
                Ok((len, _)) => self.received.extend_from_slice(&buffer[..len]),
                Err(Errno::AGAIN) => return Progress::Waits,
                Err(Errno::INTR) => {}
                Err(_) => return Progress::Failed,
            }
            if let Some((len, rest)) = self.received.split_first_chunk::<2>()
                && rest.len() >= usize::from(u16::from_be_bytes(*len))
            {
                let message = rest[..usize::from(u16::from_be_bytes(*len))].to_vec();
                return self.judge(core, &message, last).unwrap_or(Progress::Failed);
            }
            if self.received.len() > 2 + MAX_TCP {
                return Progress::Failed;
            }
        }
    }

    /// What a message of the name server is worth; `None`: it is no answer to this.
    fn judge(&self, core: &mut Core, message: &[u8], last: bool) -> Option<Progress> {
        let answer = core.names.response(core.now, &self.question, message, &core.policy)?;
        // RFC 1035, section 4.1.1: server failure, not implemented, refused.
        let unable = message.get(3).is_some_and(|flags| matches!(flags & 0xf, 2 | 4 | 5));
        Some(if unable && !last { Progress::Failed } else { Progress::Answered(answer) })
    }
}
