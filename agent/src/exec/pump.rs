//! Moves a command's input and output until it has ended, and ends it when its time is up or its host is gone.
//!
//! One thread and one poll(2) a command. Output is read only when the pieces before it have been sent, input is received only when
//! the piece before it has been written: so nothing is buffered beyond what one poll finds, and the stream's credit reaches the
//! command. What a detached command writes goes to its ring instead.
//!
//! What is found at once is sent at once: each write is a notification of the host, and most commands end before anybody has taken
//! note of their start.

use super::stdio::{self, Stdio};
use crate::Agent;
use crate::process::Process;
use crate::stream::{Stream, StreamError};
use protocol::{
    CHUNK, Exec, Exit, FrameType, HEADER, Signal as SignalMessage, Started, Truncated, WindowSize, encode,
    header,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long output may stay open after the main process has ended: what it wrote is in the pipe by then, so this is for children that are
/// still ending.
const DRAIN: Duration = Duration::from_millis(200);

/// How long after SIGKILL to wait for the end of output. Only a process outside the cgroup that was handed the pipe can hold it open.
const GIVE_UP: Duration = Duration::from_secs(1);

/// How long the word of a command's start may wait for what comes next. Not where there is input, which is sent in answer to it.
const HOLD: Duration = Duration::from_millis(20);

/// How much output to make room for until there is more.
const FIRST_PIECE: usize = 4096;

/// A terminal's end-of-file character, ^D.
const EOF_CHARACTER: u8 = 4;

/// What moves one command's input and output.
#[derive(Debug)]
pub(crate) struct Pump {
    agent: Arc<Agent>,
    process: Arc<Process>,
    /// Readable when the main process has ended. None: it has.
    end: Option<OwnedFd>,
    stdio: Stdio,
    /// None: detached, or the host is gone.
    host: Option<Stream>,
    /// How often the machine had been saved when that stream began.
    saves: u64,
    /// Frames, of which `sent` bytes have been sent.
    frames: Vec<u8>,
    sent: usize,
    /// There was no room for all of them.
    blocked: bool,
    /// Until when the first of them waits for others.
    held: Option<Instant>,
    /// How much output to read at once.
    piece: usize,
    /// Input that is not written yet.
    input: Vec<u8>,
    input_ended: bool,
    /// How many bytes of each output may still be passed on.
    stdout_left: u64,
    stderr_left: u64,
    truncated: Truncated,
    deadline: Option<Instant>,
    timed_out: bool,
    /// When to kill what a SIGTERM did not end.
    kill_at: Option<Instant>,
    killed_at: Option<Instant>,
    exit: Option<Exit>,
}

/// Which of a command's outputs.
#[derive(Clone, Copy)]
enum Which {
    Stdout,
    Stderr,
}

/// What poll found.
#[derive(Clone, Copy)]
struct Ready {
    host: PollFlags,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Pump {
    pub(super) fn new(
        agent: Arc<Agent>,
        process: Arc<Process>,
        end: OwnedFd,
        stdio: Stdio,
        exec: &Exec,
        host: Option<Stream>,
    ) -> Self {
        // It is never too long.
        let started = host.as_ref().and_then(|_| encode(&Started { pid: process.pid() }).ok());
        let held = started.is_some() && !exec.stdin && exec.tty.is_none();
        let timeout = exec.timeout_ms.filter(|&timeout| timeout > 0).map(Duration::from_millis);
        Self {
            // One too long to be counted never comes.
            deadline: timeout.and_then(|timeout| process.started.checked_add(timeout)),
            saves: agent.saves.load(Ordering::Relaxed),
            agent,
            process,
            end: Some(end),
            stdio,
            host,
            frames: started.unwrap_or_default(),
            sent: 0,
            blocked: false,
            held: held.then(|| Instant::now() + HOLD),
            piece: FIRST_PIECE,
            input: Vec::new(),
            input_ended: false,
            stdout_left: exec.output_limit.unwrap_or(u64::MAX),
            stderr_left: exec.output_limit.unwrap_or(u64::MAX),
            truncated: Truncated::default(),
            timed_out: false,
            kill_at: None,
            killed_at: None,
            exit: None,
        }
    }

    /// Runs until the command has ended and its output is complete.
    pub(super) fn run(mut self) {
        self.flush();
        while !self.is_over() {
            let Ok(ready) = self.wait() else { break };
            if ready.host.contains(PollFlags::OUT) {
                self.flush();
            }
            if ready.host.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
                self.host_gone();
            } else if ready.host.contains(PollFlags::IN) {
                self.receive();
            }
            if ready.stdin {
                self.write_input();
            }
            self.read_outputs(ready);
            self.keep_time();
            if !self.is_over() {
                self.flush();
            }
        }
        // What a detached command leaves running goes on by itself, unless it was to end.
        if !self.process.detached || self.kill_at.is_some() {
            self.process.cgroup.kill();
        }
        let exit = self.exit();
        if let Some(host) = &self.host {
            // A host that is gone needs no answer.
            drop(encode(&exit).map_err(StreamError::from).and_then(|frame| {
                self.frames.extend(frame);
                host.send(&self.frames[self.sent..])
            }));
        }
        if self.exit.is_none() {
            self.agent.processes.finish(&self.process, exit);
        }
        // The host need not wait for what is only cleared away.
        self.host = None;
        self.agent.cgroups.retire(&self.process.cgroup);
    }

    fn is_over(&self) -> bool {
        let closed = self.stdio.stdout.is_none() && self.stdio.stderr.is_none();
        let waited = self.killed_at.is_some_and(|at| at.elapsed() >= GIVE_UP);
        self.process.status().is_some() && !self.blocked && (closed || waited)
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Result<Ready, Errno> {
        let mut fds = Vec::with_capacity(6);
        fds.push(PollFd::new(self.process.wake(), PollFlags::IN));
        fds.extend(self.end.as_ref().map(|end| PollFd::new(end, PollFlags::IN)));
        if let Some(host) = &self.host {
            let mut events = PollFlags::RDHUP;
            events.set(PollFlags::IN, self.input.is_empty());
            events.set(PollFlags::OUT, self.blocked);
            fds.push(PollFd::new(host, events));
        }
        let stdin = self.stdio.stdin.as_ref().filter(|_| !self.input.is_empty());
        let stdout = self.stdio.stdout.as_ref().filter(|_| !self.blocked);
        let stderr = self.stdio.stderr.as_ref().filter(|_| !self.blocked);
        fds.extend(stdin.map(|fd| PollFd::new(fd, PollFlags::OUT)));
        fds.extend(stdout.map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(stderr.map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = self.next_time().map(|time| time.saturating_duration_since(Instant::now()));
        // A timeout that is too long for the system call is none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error),
        }

        let mut found = fds.iter().map(PollFd::revents);
        let mut next = |asked: bool| if asked { found.next() } else { None }.unwrap_or(PollFlags::empty());
        if !next(true).is_empty() {
            self.process.wake().clear();
        }
        let ended = !next(self.end.is_some()).is_empty();
        // An error or a hang-up is found by the read or write.
        let ready = Ready {
            host: next(self.host.is_some()),
            stdin: !next(stdin.is_some()).is_empty(),
            stdout: !next(stdout.is_some()).is_empty(),
            stderr: !next(stderr.is_some()).is_empty(),
        };
        if ended {
            self.end = None;
            // Where it cannot be collected yet, as while it is traced, the reaper does it.
            self.process.collect();
        }
        Ok(ready)
    }

    /// When something has to be done though nothing happens.
    fn next_time(&self) -> Option<Instant> {
        let end = self.process.status().map(|(_, at)| at + DRAIN);
        let drain = end.filter(|_| self.killed_at.is_none() && self.exit.is_none());
        let give_up = self.killed_at.map(|at| at + GIVE_UP).filter(|_| end.is_some() && !self.blocked);
        [self.held, self.deadline, self.kill_at, drain, give_up].into_iter().flatten().min()
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        let ended = self.process.status();
        if ended.is_some() {
            self.deadline = None;
        }
        if ended.is_some() || self.held.is_some_and(|held| held <= now) {
            self.held = None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.timed_out = true;
            self.end();
        }
        if self.process.is_ending() {
            self.end();
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill();
        }
        if ended.is_some_and(|(_, at)| at + DRAIN <= now) {
            if !self.process.detached {
                self.kill();
            } else if self.exit.is_none() {
                // Its children may go on; those who wait for it need not.
                let exit = self.exit();
                self.exit = Some(exit);
                self.agent.processes.finish(&self.process, exit);
            }
        }
    }

    /// SIGTERM to every process, then SIGKILL.
    fn end(&mut self) {
        if self.kill_at.is_none() && self.killed_at.is_none() {
            if self.process.detached && self.stdio.terminal.is_some() {
                // As when a terminal is closed: a shell ignores SIGTERM.
                self.process.signal(Signal::HUP);
            }
            self.process.cgroup.signal(Signal::TERM);
            self.kill_at = Some(Instant::now() + GRACE);
        }
    }

    fn kill(&mut self) {
        self.kill_at = None;
        if self.killed_at.is_none() {
            self.process.cgroup.kill();
            self.killed_at = Some(Instant::now());
        }
    }

    fn host_gone(&mut self) {
        self.host = None;
        self.forget_frames();
        // It falls where the machine was not saved after all: of a command that began meanwhile nobody has taken the stream.
        if self.agent.saves.load(Ordering::Relaxed) <= self.saves {
            self.end();
        } else {
            // The machine was saved since: the command goes on, with nobody to write to it.
            self.input.clear();
            if self.stdio.terminal.is_none() {
                self.stdio.stdin = None;
            }
        }
    }

    fn forget_frames(&mut self) {
        self.frames.clear();
        self.sent = 0;
        self.blocked = false;
    }

    /// Sends what there is and need not wait, as far as there is room.
    fn flush(&mut self) {
        let Some(host) = self.host.as_ref().filter(|_| self.held.is_none() && !self.frames.is_empty()) else {
            return;
        };
        let was_blocked = self.blocked;
        match host.try_send(&self.frames[self.sent..]) {
            Ok(count) => {
                self.sent += count;
                self.blocked = self.sent < self.frames.len();
                if !self.blocked {
                    self.forget_frames();
                    // What was not read for want of room has its time from here on.
                    self.killed_at = self.killed_at.map(|at| if was_blocked { Instant::now() } else { at });
                }
            }
            Err(_) => self.host_gone(),
        }
    }

    fn receive(&mut self) {
        let Some(host) = &mut self.host else { return };
        if host.receive(RecvFlags::DONTWAIT).and_then(|()| self.take_frames()).is_err() {
            self.host_gone();
        }
    }

    /// Takes what was received, up to input that has to be written first.
    fn take_frames(&mut self) -> Result<(), StreamError> {
        while self.input.is_empty() {
            let Some(host) = &mut self.host else { return Ok(()) };
            let Some(frame) = host.next_frame()? else { return Ok(()) };
            match frame.kind {
                FrameType::Stdin => {
                    if self.stdio.stdin.is_some() && !self.input_ended {
                        self.input.extend_from_slice(frame.payload);
                    }
                }
                FrameType::StdinEnd => {
                    self.input_ended = true;
                    if self.stdio.terminal.is_some() {
                        self.input.push(EOF_CHARACTER);
                    } else {
                        self.stdio.stdin = None;
                    }
                }
                FrameType::Resize => {
                    let size: WindowSize = frame.message()?;
                    if let Some(terminal) = &self.stdio.terminal {
                        // It fails only for what is no terminal.
                        let _ = stdio::resize(terminal, size);
                    }
                }
                FrameType::Signal => {
                    let SignalMessage { signal } = frame.message()?;
                    if let Some(signal) = crate::serve::signal(signal) {
                        self.process.signal(signal);
                    }
                }
                _ => return Err(StreamError::Ended),
            }
        }
        Ok(())
    }

    fn write_input(&mut self) {
        let Some(stdin) = &self.stdio.stdin else { return };
        match rustix::io::write(stdin, &self.input) {
            Ok(count) => drop(self.input.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => {
                // The command reads no more; what still comes is dropped.
                self.input.clear();
                self.stdio.stdin = None;
            }
        }
        if self.take_frames().is_err() {
            self.host_gone();
        }
    }

    fn read_outputs(&mut self, ready: Ready) {
        if ready.stdout {
            self.read_output(Which::Stdout);
        }
        if ready.stderr {
            self.read_output(Which::Stderr);
        }
        if !self.blocked && self.process.status().is_some() {
            // Behind what was read just now there is most often the end.
            self.read_output(Which::Stdout);
            self.read_output(Which::Stderr);
        }
    }

    fn read_output(&mut self, which: Which) {
        let (fd, kind, left) = match which {
            Which::Stdout => (&mut self.stdio.stdout, FrameType::Stdout, &mut self.stdout_left),
            Which::Stderr => (&mut self.stdio.stderr, FrameType::Stderr, &mut self.stderr_left),
        };
        let start = self.frames.len();
        let content = start + HEADER;
        self.frames.resize(content + self.piece, 0);
        let count = read(fd, &mut self.frames[content..]).unwrap_or(0);
        if count == self.piece {
            self.piece = CHUNK;
        }
        let kept = count.min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= kept as u64;
        if kept < count {
            match which {
                Which::Stdout => self.truncated.stdout = true,
                Which::Stderr => self.truncated.stderr = true,
            }
        }
        if kept > 0 && self.host.is_some() {
            self.frames.truncate(content + kept);
            self.frames[start..content].copy_from_slice(&header(kind, kept));
            self.held = None;
            return;
        }
        if kept > 0 && self.process.detached {
            self.process.keep(kind, &self.frames[content..content + kept]);
        }
        self.frames.truncate(start);
    }

    fn exit(&self) -> Exit {
        let (status, ended) = match self.process.status() {
            Some((status, ended)) => (Some(status), ended),
            None => (None, Instant::now()),
        };
        Exit {
            exit_code: status.and_then(rustix::process::WaitStatus::exit_status),
            signal: status.and_then(rustix::process::WaitStatus::terminating_signal),
            timed_out: self.timed_out,
            truncated: self.truncated,
            oom_killed: self.process.cgroup.oom_killed(),
            duration_ms: ended.duration_since(self.process.started).as_millis() as u64,
        }
    }
}

/// Reads once from an output, and closes it at its end. None: nothing was read.
fn read(fd: &mut Option<OwnedFd>, space: &mut [u8]) -> Option<usize> {
    match rustix::io::read(fd.as_ref()?, space) {
        Err(Errno::AGAIN | Errno::INTR) => None,
        // A terminal whose last user has gone says EIO.
        Ok(0) | Err(_) => {
            *fd = None;
            None
        }
        Ok(count) => Some(count),
    }
}
