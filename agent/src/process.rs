//! The table of commands, and the reaper.
//!
//! A main process is entered into the table under the table's lock, together with its clone; the reaper looks a dead child up under the
//! same lock before it collects it. So no exit is missed, and no pid is used again while a command has it.

use crate::cgroup::Cgroup;
use crate::exec::ring::Ring;
use crate::lock;
use protocol::{Exit, FrameType};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many detached commands stay listed after their end.
const MAX_ENDED: usize = 256;

/// Of a command as it is listed, in bytes.
const MAX_COMMAND: usize = 4096;

/// Every command that runs, and the latest detached ones that have ended.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    table: Mutex<Table>,
    /// There may be children again.
    started: Condvar,
    /// There are no children any more.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    running: HashMap<u32, Arc<Process>>,
    ended: VecDeque<Arc<Process>>,
    /// How many were started.
    starts: u64,
    /// Whether there was no child when the reaper looked last, and none was started since.
    idle: bool,
}

impl Processes {
    /// Enters the process that `clone` makes. The entry is there before its end can be seen.
    pub(crate) fn start(
        &self,
        new: New,
        clone: impl FnOnce() -> Result<u32, Errno>,
    ) -> Result<Arc<Process>, Errno> {
        let mut table = lock(&self.table);
        let pid = clone()?;
        let process = Arc::new(Process::new(pid, new));
        table.ended.retain(|process| process.pid != pid);
        table.running.insert(pid, Arc::clone(&process));
        table.starts += 1;
        table.idle = false;
        self.started.notify_one();
        Ok(process)
    }

    /// That a command has ended and its output is complete: the answer to all who wait for it.
    pub(crate) fn finish(&self, process: &Arc<Process>, exit: Exit) {
        process.set_exit(exit);
        let mut table = lock(&self.table);
        self::remove(&mut table.running, process);
        if process.detached && !table.running.contains_key(&process.pid) {
            table.ended.push_back(Arc::clone(process));
            if table.ended.len() > MAX_ENDED {
                table.ended.pop_front();
            }
        }
    }

    /// Forgets a process that did not get to run its program.
    pub(crate) fn forget(&self, process: &Arc<Process>) {
        self::remove(&mut lock(&self.table).running, process);
    }

    /// The command with this pid.
    pub(crate) fn get(&self, pid: u32) -> Option<Arc<Process>> {
        let table = lock(&self.table);
        table.running.get(&pid).or_else(|| table.ended.iter().find(|process| process.pid == pid)).cloned()
    }

    /// Every command, the oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<Process>> {
        let table = lock(&self.table);
        let mut list: Vec<_> = table.ended.iter().chain(table.running.values()).cloned().collect();
        list.sort_by_key(|process| process.started);
        list
    }

    /// Collects every child that ends, for ever.
    pub(crate) fn reap_forever(&self) {
        loop {
            let starts = lock(&self.table).starts;
            // Only looked at: once it is collected its pid can be used again, so that is done under the lock.
            match rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => self.reap(),
                // No children. Adopted ones descend from commands, but for those of the kernel's own helpers, which
                // are collected with the next command's.
                Err(Errno::CHILD) => {
                    let mut table = lock(&self.table);
                    if table.starts == starts {
                        table.idle = true;
                        self.idle.notify_all();
                        drop(self.started.wait_while(table, |table| table.idle));
                    }
                }
                Err(_) => (),
            }
        }
    }

    /// Collects the children that have ended.
    fn reap(&self) {
        let table = lock(&self.table);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(process) = table.running.get(&pid.as_raw_pid().cast_unsigned()) {
                process.set_status(status);
            }
        }
    }

    /// Waits until there is no child, but no longer than `limit`.
    pub(crate) fn wait_idle(&self, limit: Duration) {
        let table = lock(&self.table);
        drop(self.idle.wait_timeout_while(table, limit, |table| !table.idle));
    }
}

fn remove(running: &mut HashMap<u32, Arc<Process>>, process: &Arc<Process>) {
    // The pid may be another's by now.
    if running.get(&process.pid).is_some_and(|found| Arc::ptr_eq(found, process)) {
        running.remove(&process.pid);
    }
}

/// What is known of a command before it has a pid.
#[derive(Debug)]
pub(crate) struct New {
    pub(crate) command: String,
    pub(crate) detached: bool,
    /// The agent's end of a detached command's terminal.
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) cgroup: Cgroup,
    pub(crate) wake: Wake,
}

/// One command.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) command: String,
    pub(crate) detached: bool,
    at_terminal: bool,
    pub(crate) cgroup: Cgroup,
    pub(crate) started: Instant,
    start_time: Duration,
    /// Wakes the thread that moves the command's output.
    wake: Wake,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How the main process ended, and when.
    status: Option<(WaitStatus, Instant)>,
    /// Whether it was asked to end.
    ending: bool,
    exit: Option<Exit>,
    ring: Ring,
    /// Until the command has ended.
    terminal: Option<OwnedFd>,
    attached: u32,
    /// Who waits for output or for the exit.
    watchers: Vec<Weak<Wake>>,
}

impl Process {
    fn new(pid: u32, mut new: New) -> Self {
        if new.command.len() > MAX_COMMAND {
            new.command.truncate(new.command.floor_char_boundary(MAX_COMMAND));
        }
        Self {
            pid,
            command: new.command,
            detached: new.detached,
            at_terminal: new.terminal.is_some(),
            cgroup: new.cgroup,
            started: Instant::now(),
            start_time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            wake: new.wake,
            state: Mutex::new(State { terminal: new.terminal, ..State::default() }),
        }
    }

    /// How it stands in a list.
    pub(crate) fn entry(&self) -> protocol::Process {
        let state = lock(&self.state);
        protocol::Process {
            pid: self.pid,
            command: self.command.clone(),
            start_time_ms: self.start_time.as_millis() as u64,
            detached: self.detached,
            terminal: self.at_terminal,
            attached: state.attached,
            exit: state.exit,
        }
    }

    fn set_status(&self, status: WaitStatus) {
        lock(&self.state).status = Some((status, Instant::now()));
        self.wake.up();
    }

    /// How and when the main process ended.
    pub(crate) fn status(&self) -> Option<(WaitStatus, Instant)> {
        lock(&self.state).status
    }

    fn set_exit(&self, exit: Exit) {
        let mut state = lock(&self.state);
        state.exit = Some(exit);
        state.terminal = None;
        wake_watchers(&mut state);
    }

    /// Keeps output for those who attach.
    pub(crate) fn keep(&self, kind: FrameType, bytes: &[u8]) {
        let mut state = lock(&self.state);
        state.ring.push(kind, bytes);
        wake_watchers(&mut state);
    }

    /// The next piece of kept output behind `position`, and the exit once there is none left.
    pub(crate) fn output(&self, position: &mut u64) -> Output {
        let state = lock(&self.state);
        match (state.ring.next(position), state.exit) {
            (Some((kind, bytes)), _) => Output::Piece(kind, bytes),
            (None, Some(exit)) => Output::Exit(exit),
            (None, None) => Output::Nothing,
        }
    }

    /// The position behind all output so far.
    pub(crate) fn output_end(&self) -> u64 {
        lock(&self.state).ring.end()
    }

    /// The terminal of a detached command that runs.
    pub(crate) fn terminal(&self) -> Option<OwnedFd> {
        lock(&self.state).terminal.as_ref().and_then(|terminal| terminal.try_clone().ok())
    }

    /// Counts those who are attached.
    pub(crate) fn attach(self: &Arc<Self>) -> Attached {
        lock(&self.state).attached += 1;
        Attached(Arc::clone(self))
    }

    /// How it ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        lock(&self.state).exit
    }

    /// Has `watcher` woken at each piece of output and at the exit.
    pub(crate) fn watch(&self, watcher: &Arc<Wake>) {
        lock(&self.state).watchers.push(Arc::downgrade(watcher));
    }

    /// Signals the main process's group, SIGKILL every process. False if the main process has ended.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        // Held meanwhile, so that the reaper cannot give the pid away.
        let state = lock(&self.state);
        if state.status.is_some() {
            return false;
        }
        if signal == Signal::KILL {
            self.cgroup.kill();
        } else if let Some(group) = Pid::from_raw(self.pid.cast_signed()) {
            // Between clone and setsid there is no such group; then the process alone gets it.
            if rustix::process::kill_process_group(group, signal).is_err() {
                let _ = rustix::process::kill_process(group, signal);
            }
        }
        true
    }

    /// Has it ended as by a timeout. False if the main process has ended.
    pub(crate) fn end(&self) -> bool {
        let mut state = lock(&self.state);
        if state.status.is_some() {
            return false;
        }
        state.ending = true;
        self.wake.up();
        true
    }

    /// Whether [`Process::end`] was called.
    pub(crate) fn is_ending(&self) -> bool {
        lock(&self.state).ending
    }

    /// Readable when the process ended or is to be ended.
    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }
}

/// One that is attached.
pub(crate) struct Attached(Arc<Process>);

impl Drop for Attached {
    fn drop(&mut self) {
        lock(&self.0.state).attached -= 1;
    }
}

fn wake_watchers(state: &mut State) {
    state.watchers.retain(|watcher| watcher.upgrade().is_some_and(|watcher| watcher.up()));
}

/// What [`Process::output`] found.
pub(crate) enum Output {
    Piece(FrameType, Arc<[u8]>),
    Exit(Exit),
    Nothing,
}

/// An eventfd that ends a wait in poll(2).
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Makes it readable. Always true.
    fn up(&self) -> bool {
        // It fails only when its counter is full, and then it is readable.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        true
    }

    /// Makes it unreadable again.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
