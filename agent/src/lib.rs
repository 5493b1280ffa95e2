//! The agent: PID 1 of the guest. It makes the image's file system the root, then runs what the host asks for.
//!
//! # Threads
//! - the main thread keeps a stream to the host open ([`control`]);
//! - those that serve streams each accept one, read one request and carry it out ([`serve`]); there is always one more, which waits for
//!   the next stream; beyond a limit it closes them. The one that has started a command in the foreground moves its input and output and
//!   collects it ([`exec::pump`]); for a detached one a further thread does;
//! - the reaper waits for every child: it collects the adopted ones, and commands whose pump cannot ([`process`]).
//!
//! They share [`Agent`]: the table of commands, the cgroups, and what the machine is. Each command is in a cgroup of its own, by which it
//! is killed.

mod attach;
pub mod cgroup;
pub mod control;
mod datagrams;
pub mod exec;
mod files;
mod forward;
pub mod identity;
pub mod init;
pub mod kmsg;
pub mod network;
mod power;
pub mod process;
pub mod serve;
mod stream;
mod user;
pub mod vsock;

use cgroup::Cgroups;
use process::Processes;
use protocol::{Config, Error, ErrorCode};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a thread needs: parsing JSON and tar headers goes no deeper. Only what is touched takes memory.
const STACK: usize = 256 << 10;

/// What the threads share.
#[derive(Debug)]
pub struct Agent {
    processes: Processes,
    cgroups: Cgroups,
    streams: AtomicUsize,
    /// How often the machine was saved: streams from before that are broken by no fault of the host.
    saves: AtomicU64,
    /// What the machine is: as it has booted, or as it was told after the last restore.
    config: Mutex<Config>,
}

impl Agent {
    /// An agent that keeps its commands' cgroups in `cgroups`, with its reaper running, in a machine that is what `config` says.
    pub fn new(cgroups: Cgroups, config: Config) -> std::io::Result<Arc<Self>> {
        let (streams, saves) = (AtomicUsize::new(0), AtomicU64::new(0));
        let (processes, config) = (Processes::default(), Mutex::new(config));
        let agent = Arc::new(Self { processes, cgroups, streams, saves, config });
        let reaper = Arc::clone(&agent);
        start_thread(move || reaper.processes.reap_forever())?;
        Ok(agent)
    }

    /// Counts one more stream; `None` if there are [`protocol::MAX_STREAMS`] already.
    fn enter(self: &Arc<Self>) -> Option<StreamCount> {
        let count = StreamCount(Arc::clone(self));
        (self.streams.fetch_add(1, Ordering::Relaxed) < protocol::MAX_STREAMS).then_some(count)
    }
}

/// One stream that is served.
struct StreamCount(Arc<Agent>);

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start_thread(body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(body).map(drop)
}

/// A mutex's content. Nothing panics while it holds one, and a panic of the agent ends the guest anyway.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The answer to a request that failed without an error of the system.
fn refusal(code: ErrorCode, message: impl Into<String>) -> Error {
    Error { code, message: message.into(), errno: None }
}

/// The answer to a request that failed by an error of the system: `what: why`.
fn failure(code: ErrorCode, what: impl std::fmt::Display, errno: Errno) -> Error {
    let why = std::io::Error::from(errno);
    Error { code, message: format!("{what}: {why}"), errno: Some(errno.raw_os_error()) }
}
