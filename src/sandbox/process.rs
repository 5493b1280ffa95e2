//! The process of a machine: `voidrun vmm`, started from the very program that runs, known by its pidfd.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use vmm::process::SPEC_FD;

/// Above the numbers that the child gives to what it inherits, but for those of many published ports.
const PROGRAM_FD: RawFd = 64;

/// What the process of a machine inherits, under the numbers it will have there.
#[derive(Debug, Default)]
pub(super) struct Descriptors(Vec<OwnedFd>);

/// A process, whatever becomes of its number.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: AsyncFd<OwnedFd>,
}

impl Descriptors {
    /// Hands `descriptor` over; returns its number in the process.
    pub(super) fn add(&mut self, descriptor: impl Into<OwnedFd>) -> RawFd {
        self.0.push(descriptor.into());
        SPEC_FD + self.0.len() as RawFd
    }

    /// The first number that nothing of it has.
    fn end(&self) -> RawFd {
        SPEC_FD + 1 + self.0.len() as RawFd
    }

    fn into_mappings(self, spec: OwnedFd) -> Vec<FdMapping> {
        let others = (SPEC_FD + 1..).zip(self.0);
        std::iter::once((SPEC_FD, spec))
            .chain(others)
            .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd })
            .collect()
    }
}

/// Starts the process of the machine that `spec` describes. What is in `descriptors` is closed here.
pub(super) fn spawn(spec: OwnedFd, descriptors: Descriptors, log: File) -> io::Result<Process> {
    // By an open file and not by its name: an upgrade may have replaced that.
    let program = File::open("/proc/self/exe")?;
    let program =
        rustix::io::fcntl_dupfd_cloexec(&program, PROGRAM_FD.max(descriptors.end())).map_err(|error| {
            match error {
                // So many may not be open at all.
                rustix::io::Errno::INVAL => rustix::io::Errno::MFILE,
                error => error,
            }
        })?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command
        .arg0("voidrun")
        .arg("vmm")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .fd_mappings(descriptors.into_mappings(spec))
        .map_err(io::Error::other)?;
    let mut child = command.spawn()?;
    let process = (|| {
        let number = child.id().and_then(|id| Pid::from_raw(id as i32)).ok_or(io::ErrorKind::NotFound)?;
        // Nobody has waited for the child yet, so the number is still its own.
        Process::new(pidfd_open(number, PidfdFlags::empty())?)
    })();
    if process.is_err() {
        // It holds the sandbox's lock, and nobody would know of it.
        let _ = child.start_kill();
    }
    // Dropped, it is waited for in the background.
    process
}

impl Process {
    pub(super) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` has the same number for as long as it lives, and nobody else closes it; it lives in the `AsyncFd`,
        // which is never taken apart.
        Ok(Self { pidfd: unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE)? } })
    }

    /// Returns when it has ended.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    /// Ends it at once, with what it runs: the guest has no say in it.
    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Blocks until it has ended; false if it has not within `limit`.
    pub(super) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        let ready =
            rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)))?;
        Ok(ready > 0)
    }
}
