//! The process of a machine: `voidrun vmm`, started from the very program that runs, known by its pidfd.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, pidfd_open, pidfd_send_signal,
    waitid, waitpid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmm::process::SPEC_FD;

/// Above the numbers that the child gives to what it inherits, but for those of many published ports. The process is called so.
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
}

/// Starts the process of the machine that `spec` describes. What is in `descriptors` is closed here.
pub(super) fn spawn(spec: OwnedFd, descriptors: Descriptors, log: File) -> io::Result<Process> {
    let end = descriptors.end();
    // Each is above the numbers that the child gives: none takes the place of one that is still to get its own.
    let from = |number: RawFd, descriptor: OwnedFd| {
        if descriptor.as_raw_fd() >= number {
            return Ok(descriptor);
        }
        // So many may not be open at all.
        let full = |error| if error == Errno::INVAL { Errno::MFILE } else { error };
        rustix::io::fcntl_dupfd_cloexec(&descriptor, number).map_err(full)
    };
    let above = |descriptor| from(end, descriptor);
    let (log, spec) = (above(log.into())?, above(spec)?);
    let others = descriptors.0.into_iter().map(above).collect::<Result<Vec<_>, _>>()?;
    // By an open file and not by its name: an upgrade may have replaced that.
    let program = from(PROGRAM_FD.max(end), File::open("/proc/self/exe")?.into())?;
    let mut actions = FileActions::new()?;
    actions.open_null(0)?;
    actions.open_null(1)?;
    actions.dup(&log, 2)?;
    for (descriptor, number) in std::iter::once(&spec).chain(&others).zip(SPEC_FD..) {
        actions.dup(descriptor, number)?;
    }
    actions.enter_root()?;
    let number = actions.spawn(&format!("/proc/self/fd/{}", program.as_raw_fd()), &[c"voidrun", c"vmm"])?;
    // Nobody has waited for the child yet, so the number is still its own.
    let process = pidfd_open(number, PidfdFlags::empty()).map_err(io::Error::from).and_then(|pidfd| {
        reap(pidfd.try_clone()?)?;
        Process::new(pidfd)
    });
    if process.is_err() {
        // It holds the sandbox's lock, and nobody would know of it, or wait for it.
        let _ = kill_process(number, Signal::KILL);
        let _ = waitpid(Some(number), WaitOptions::empty());
    }
    process
}

/// What a child does before it becomes another program. As with vfork(2) it runs in our memory until then, of which nothing is copied: it may
/// be much, and this is waited for.
struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: it is made by this call.
        spawned(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: it was made.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn open_null(&mut self, number: RawFd) -> io::Result<()> {
        let (path, flags) = (c"/dev/null".as_ptr(), libc::O_RDWR);
        // SAFETY: the actions were made; the path is copied.
        spawned(unsafe { libc::posix_spawn_file_actions_addopen(&raw mut self.0, number, path, flags, 0) })
    }

    /// `descriptor` has to be open until the start.
    fn dup(&mut self, descriptor: &OwnedFd, number: RawFd) -> io::Result<()> {
        let from = descriptor.as_raw_fd();
        // SAFETY: the actions were made.
        spawned(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, number) })
    }

    fn enter_root(&mut self) -> io::Result<()> {
        // SAFETY: the actions were made; the path is copied.
        spawned(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, c"/".as_ptr()) })
    }

    /// Starts `program` with these arguments and no environment.
    fn spawn(&self, program: &str, arguments: &[&CStr]) -> io::Result<Pid> {
        let program = CString::new(program)?;
        let pointers = arguments.iter().map(|argument| argument.as_ptr().cast_mut());
        let arguments: Vec<_> = pointers.chain([null_mut()]).collect();
        let (environment, mut number) = ([null_mut()], 0);
        let (mut none, mut attributes) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both are made by these calls.
        spawned(unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::posix_spawnattr_init(attributes.as_mut_ptr())
        })?;
        // No signal is blocked, whoever has started us: a vCPU is kicked by one.
        // SAFETY: attributes, signals and actions were made; the arguments and the environment are arrays of strings, with null at their
        // ends, which are not written to. All of it outlives the calls, of which these two do not fail and the last frees nothing else.
        let result = unsafe {
            libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), none.as_ptr());
            libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), libc::POSIX_SPAWN_SETSIGMASK as _);
            let result = libc::posix_spawn(
                &raw mut number,
                program.as_ptr(),
                &raw const self.0,
                attributes.as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
            );
            libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
            result
        };
        spawned(result)?;
        Pid::from_raw(number).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: they were made, and nobody uses them any more. It does not fail.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// These functions give the error itself.
fn spawned(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Waits for a child in the background, so that nothing stays of it.
fn reap(child: OwnedFd) -> io::Result<()> {
    let child = Process::new(child)?;
    tokio::spawn(async move {
        if child.ended().await.is_ok() {
            let _ = waitid(WaitId::PidFd(child.pidfd.get_ref().as_fd()), WaitIdOptions::EXITED);
        }
    });
    Ok(())
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
            Err(Errno::SRCH) => Ok(()),
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
