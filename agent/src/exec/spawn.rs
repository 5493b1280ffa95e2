//! From a plan to a process: clone3 into the command's cgroup, then execve.

use super::plan::Plan;
use super::stdio::Ends;
use crate::failure;
use crate::process::{New, Process, Processes};
use libc::{c_int, c_long};
use protocol::{Error, ErrorCode};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::Arc;

/// What a child could not do, as it tells its parent.
#[repr(i32)]
#[derive(Clone, Copy)]
enum Step {
    SetUp,
    User,
    Cwd,
    Exec,
}

/// Starts the plan's program with these ends. The answer says why it did not get to run.
pub(super) fn spawn(
    processes: &Processes,
    new: New,
    plan: &Plan,
    ends: &Ends,
) -> Result<Arc<Process>, Error> {
    let internal = |what: &'static str| move |errno| failure(ErrorCode::Internal, what, errno);
    let cgroup = new.cgroup.open().map_err(internal("cgroup"))?;
    let (report, child_report) = pipe_with(PipeFlags::CLOEXEC).map_err(internal("pipe"))?;
    let child = Child { plan, ends, report: child_report.as_raw_fd() };
    let process = processes.start(new, || clone_into(&cgroup, child)).map_err(internal("clone3"))?;
    drop(child_report);

    // It closes at execve.
    let mut bytes = [0; 8];
    let count = loop {
        match rustix::io::read(&report, &mut bytes) {
            Err(Errno::INTR) => (),
            other => break other.unwrap_or(0),
        }
    };
    if count < bytes.len() {
        return Ok(process);
    }
    processes.forget(&process);
    let [a, b, c, d, errno @ ..] = bytes;
    let errno = Errno::from_raw_os_error(i32::from_ne_bytes(errno));
    Err(match i32::from_ne_bytes([a, b, c, d]) {
        step if step == Step::Cwd as i32 => plan.cwd_error(errno),
        step if step == Step::Exec as i32 => plan.exec_error(errno),
        step if step == Step::User as i32 => failure(ErrorCode::User, "the command's user", errno),
        _ => failure(ErrorCode::Internal, "the process's set-up", errno),
    })
}

/// Clones this process into `cgroup`. The copy becomes the program and never returns from here.
fn clone_into(cgroup: &OwnedFd, child: Child<'_>) -> Result<u32, Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: a structure of integers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM this is fork(2): the child gets a copy of memory and stack, so nothing of ours changes under us.
    // `arguments` lives through the call and has the size that is given.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of_val(&arguments)) };
    match pid {
        0 => child.run(),
        ..0 => Err(last_errno()),
        pid => Ok(pid as u32),
    }
}

/// The copy between clone and execve. Other threads may have held any lock when they vanished from it, so it makes system calls only, on
/// what was prepared.
#[derive(Clone, Copy)]
struct Child<'a> {
    plan: &'a Plan,
    ends: &'a Ends,
    report: RawFd,
}

impl Child<'_> {
    fn run(self) -> ! {
        let step = self.prepare().err().unwrap_or_else(|| {
            self.execute();
            Step::Exec
        });
        let errno = last_errno().raw_os_error();
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&(step as i32).to_ne_bytes());
        bytes[4..].copy_from_slice(&errno.to_ne_bytes());
        // SAFETY: writes from an array on the stack, then ends this process; both are system calls only.
        unsafe {
            libc::write(self.report, bytes.as_ptr().cast(), bytes.len());
            libc::_exit(127);
        }
    }

    fn prepare(self) -> Result<(), Step> {
        let Ends { stdin, stdout, stderr } = self.ends;
        // SAFETY: only async-signal-safe calls, with descriptors that are open and pointers to what lives until execve. The
        // agent's own 0, 1 and 2 are open, so none of the ends is one of them.
        unsafe {
            ok(libc::setsid(), Step::SetUp)?;
            ok(libc::dup2(stdin.as_raw_fd(), 0), Step::SetUp)?;
            ok(libc::dup2(stdout.as_raw_fd(), 1), Step::SetUp)?;
            ok(libc::dup2(stderr.as_raw_fd(), 2), Step::SetUp)?;
            if self.plan.tty() {
                ok(libc::ioctl(0, libc::TIOCSCTTY, 0), Step::SetUp)?;
            }
            // What is caught becomes the default by itself at execve; what is ignored does not.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            ok(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut()), Step::SetUp)?;
            expose_to_oom_killer();
            // Beside the three there is to be nothing, whatever a library opened without O_CLOEXEC.
            let close = libc::CLOSE_RANGE_CLOEXEC;
            ok_long(libc::syscall(libc::SYS_close_range, 3, u32::MAX, close), Step::SetUp)?;
            libc::umask(0o022);
            if let Some(user) = self.plan.user() {
                // The plain system calls: musl's functions would wait for threads that this copy does not have.
                let groups = user.groups.as_ptr();
                ok_long(libc::syscall(libc::SYS_setgroups, user.groups.len(), groups), Step::User)?;
                ok_long(libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid), Step::User)?;
                ok_long(libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid), Step::User)?;
            }
            ok(libc::chdir(self.plan.cwd().as_ptr()), Step::Cwd)
        }
    }

    /// Returns if no candidate could be executed, with the reason in errno: one that is there counts for more than those that are not.
    fn execute(self) {
        let mut reason = libc::ENOENT;
        for candidate in self.plan.candidates() {
            // SAFETY: the three are strings and null-terminated arrays of strings that live in the plan.
            unsafe { libc::execve(candidate.as_ptr(), self.plan.argv(), self.plan.env()) };
            match last_errno().raw_os_error() {
                libc::ENOENT | libc::ENOTDIR => (),
                libc::EACCES => reason = libc::EACCES,
                other => {
                    reason = other;
                    break;
                }
            }
        }
        // SAFETY: the address of this thread's errno.
        unsafe { *libc::__errno_location() = reason };
    }
}

/// Undoes the agent's own exemption; that takes no privilege. Without /proc there is none to undo.
fn expose_to_oom_killer() {
    // SAFETY: system calls only, with constants that live for ever.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, b"0".as_ptr().cast(), 1);
            libc::close(file);
        }
    }
}

fn ok(result: c_int, step: Step) -> Result<(), Step> {
    if result < 0 { Err(step) } else { Ok(()) }
}

fn ok_long(result: c_long, step: Step) -> Result<(), Step> {
    if result < 0 { Err(step) } else { Ok(()) }
}

fn last_errno() -> Errno {
    // SAFETY: the address of this thread's errno.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
