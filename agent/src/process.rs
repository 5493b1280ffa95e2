//! The table of commands, and the reaper.
//!
//! A command is entered into the table before its clone, which writes the pid into the entry before the process runs. So the reaper, which
//! sees every child that ends, always knows a main process. That one is collected with its entry's lock alone, by the pump or the
//! reaper, whoever is there first; who signals it holds the lock too. So no exit is missed, and no pid is used again while a command has it.

use crate::cgroup::Cgroup;
use crate::exec::ring::Ring;
use crate::lock;
use protocol::{Exit, FrameType};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
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
    /// Those that are being started too.
    running: Vec<Arc<Process>>,
    ended: VecDeque<Arc<Process>>,
    /// How many are being started.
    starting: usize,
    /// How many were.
    starts: u64,
    /// Whether there was no child when the reaper looked last, and none was started since.
    idle: bool,
}

impl Processes {
    /// Enters the process that `clone` makes, which has the kernel write its pid to where it is told. The table is not locked meanwhile.
    pub(crate) fn start<T>(
        &self,
        new: New,
        clone: impl FnOnce(&AtomicU32) -> Result<T, Errno>,
    ) -> Result<(Arc<Process>, T), Errno> {
        let process = Arc::new(Process::new(new));
        let mut table = lock(&self.table);
        table.running.push(Arc::clone(&process));
        table.starting += 1;
        table.idle = false;
        drop(table);

        let result = clone(&process.pid);

        let mut table = lock(&self.table);
        table.starting -= 1;
        table.starts += 1;
        if result.is_err() {
            self::remove(&mut table.running, &process);
        } else {
            table.ended.retain(|ended| ended.pid() != process.pid());
        }
        drop(table);
        self.started.notify_one();
        result.map(|result| (process, result))
    }

    /// That a command has ended and its output is complete: the answer to all who wait for it.
    pub(crate) fn finish(&self, process: &Arc<Process>, exit: Exit) {
        process.set_exit(exit);
        let mut table = lock(&self.table);
        self::remove(&mut table.running, process);
        if process.detached && !table.running.iter().any(|running| running.pid() == process.pid()) {
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
        // One without a pid yet is nobody's to name. The newest: the output of an older one may still wait for its host, long after its pid
        // was given to another.
        let all = table.running.iter().rev().chain(&table.ended);
        let mut all = all.filter(|process| process.pid() != 0);
        all.find(|process| process.pid() == pid).cloned()
    }

    /// Every command, the oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<Process>> {
        let table = lock(&self.table);
        let all = table.ended.iter().chain(&table.running).filter(|process| process.pid() != 0);
        let mut list: Vec<_> = all.cloned().collect();
        list.sort_by_key(|process| process.started);
        list
    }

    /// Sees to it that every child that ends is collected, for ever.
    pub(crate) fn reap_forever(&self) {
        loop {
            let starts = lock(&self.table).starts;
            match ended_child() {
                Ok(pid) => self.reap(pid),
                // No children. Adopted ones descend from commands, but for those of the kernel's own helpers, which
                // are collected with the next command's.
                Err(Errno::CHILD) => {
                    let mut table = lock(&self.table);
                    if table.starts == starts {
                        table.idle = table.starting == 0;
                        self.idle.notify_all();
                        drop(self.started.wait_while(table, |table| table.starts == starts));
                    }
                }
                Err(_) => (),
            }
        }
    }

    /// Collects a child that has ended, if that was not done meanwhile.
    fn reap(&self, pid: Pid) {
        // Opened before the table is looked at: a command that may have the pid by then is in it.
        let child = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(child) => child,
            Err(Errno::SRCH) => return,
            Err(_) => {
                // Out of descriptors or memory: those who have them need a moment.
                std::thread::sleep(Duration::from_millis(10));
                return;
            }
        };
        match self.get(pid.as_raw_pid().cast_unsigned()).filter(|process| process.status().is_none()) {
            Some(process) => {
                if process.collect() {
                    process.wake.up();
                }
            }
            None => drop(rustix::process::waitid(
                WaitId::PidFd(child.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            )),
        }
    }

    /// Waits until there is no child, but no longer than `limit`.
    pub(crate) fn wait_idle(&self, limit: Duration) {
        let table = lock(&self.table);
        drop(self.idle.wait_timeout_while(table, limit, |table| !table.idle));
    }
}

fn remove(running: &mut Vec<Arc<Process>>, process: &Arc<Process>) {
    running.retain(|found| !Arc::ptr_eq(found, process));
}

/// Waits for a child that has ended, and leaves it to be collected.
fn ended_child() -> Result<Pid, Errno> {
    // SAFETY: a structure of integers and pointers, for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives through the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT) } < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    // SAFETY: waitid has filled in what it tells of a child.
    Pid::from_raw(unsafe { info.si_pid() }).ok_or(Errno::INVAL)
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
    /// 0 until its clone.
    pid: AtomicU32,
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
    fn new(mut new: New) -> Self {
        if new.command.len() > MAX_COMMAND {
            new.command.truncate(new.command.floor_char_boundary(MAX_COMMAND));
        }
        Self {
            pid: AtomicU32::new(0),
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

    /// Of its main process. Another's may be the same once that was collected.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// How it stands in a list.
    pub(crate) fn entry(&self) -> protocol::Process {
        let state = lock(&self.state);
        protocol::Process {
            pid: self.pid(),
            command: self.command.clone(),
            start_time_ms: self.start_time.as_millis() as u64,
            detached: self.detached,
            terminal: self.at_terminal,
            attached: state.attached,
            exit: state.exit,
        }
    }

    /// Collects the main process if it has ended; whether that was done now.
    pub(crate) fn collect(&self) -> bool {
        let mut state = lock(&self.state);
        let pid = Pid::from_raw(self.pid().cast_signed()).filter(|_| state.status.is_none());
        let Some(pid) = pid else { return false };
        let Ok(Some((_, status))) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) else {
            return false;
        };
        state.status = Some((status, Instant::now()));
        true
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
        // Held meanwhile, so that the process is not collected and its pid given away.
        let state = lock(&self.state);
        if state.status.is_some() {
            return false;
        }
        if signal == Signal::KILL {
            self.cgroup.kill();
        } else if let Some(group) = Pid::from_raw(self.pid().cast_signed()) {
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

    /// Readable when the process is to be ended, and when it was collected by the reaper.
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
