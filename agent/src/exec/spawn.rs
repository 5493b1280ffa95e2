//! From a plan to a process: clone3 into the command's cgroup, then execve.
//!
//! As with vfork(2) the child runs in the agent's memory, on a stack of its own, and the thread that made it waits meanwhile: nothing is
//! copied that execve would throw away. The others go on, so the child takes no lock, allocates nothing and writes nothing of theirs.

use super::plan::Plan;
use super::stdio::Ends;
use crate::failure;
use crate::process::{New, Process, Processes};
use libc::{c_int, c_long};
use protocol::{Error, ErrorCode};
use rustix::io::Errno;
use std::arch::asm;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// For a few system calls one after the other; the unoptimized build takes most.
const STACK: usize = 16 << 10;

/// What a child could not do.
#[derive(Clone, Copy, Debug)]
enum Step {
    SetUp,
    User,
    Cwd,
    Exec,
}

/// Starts the plan's program with these ends, and gives the descriptor that tells of its end. An error says why it did not get to run.
pub(super) fn spawn(
    processes: &Processes,
    new: New,
    plan: &Plan,
    ends: &Ends,
) -> Result<(Arc<Process>, OwnedFd), Error> {
    let internal = |what: &'static str| move |errno| failure(ErrorCode::Internal, what, errno);
    let cgroup = new.cgroup.open().map_err(internal("cgroup"))?;
    let mut child = Child { plan, ends, failed: None };
    let started = processes.start(new, |pid| clone_into(&cgroup, pid, &mut child));
    let (process, pidfd) = started.map_err(internal("clone3"))?;
    let Some((step, errno)) = child.failed else { return Ok((process, pidfd)) };
    // The reaper collects it.
    processes.forget(&process);
    Err(match step {
        Step::SetUp => failure(ErrorCode::Internal, "the process's set-up", errno),
        Step::User => failure(ErrorCode::User, "the command's user", errno),
        Step::Cwd => plan.cwd_error(errno),
        Step::Exec => plan.exec_error(errno),
    })
}

/// Clones this process into `cgroup`. Returns when the child has become the program or has ended.
fn clone_into(cgroup: &OwnedFd, pid: &AtomicU32, child: &mut Child<'_>) -> Result<OwnedFd, Errno> {
    // linux/sched.h
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    #[repr(align(16))]
    struct Stack(MaybeUninit<[u8; STACK]>);

    let mut stack = Stack(MaybeUninit::uninit());
    let mut pidfd: c_int = -1;
    // SAFETY: a structure of integers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // Without handlers there is none that could run in the agent's memory, so no signal has to be blocked meanwhile.
    arguments.flags = CLONE_INTO_CGROUP
        | CLONE_CLEAR_SIGHAND
        | (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::CLONE_PARENT_SETTID) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    arguments.parent_tid = pid.as_ptr() as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.stack = stack.0.as_mut_ptr() as u64;
    arguments.stack_size = STACK as u64;
    let result: isize;
    // SAFETY: the kernel reads `arguments` and writes to `pid` and `pidfd`, all of which live here. The child never gets behind the
    // call: it has the registers of this thread but its own stack, whose end is aligned as a call needs it, and `become_program`
    // does not return. Up to execve or its end it uses `stack` and `child`, and this thread, whose they are and whose thread-local
    // storage it shares, does not run.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            // No frame lies below.
            "xor ebp, ebp",
            "mov rdi, r8",
            "call {become_program}",
            "ud2",
            "2:",
            become_program = sym become_program,
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw const arguments,
            in("rsi") size_of_val(&arguments),
            in("r8") std::ptr::from_mut(child),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if result < 0 {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    // SAFETY: clone3 opened it just now; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// What the child does. A failure is left in `child`, which its parent looks at afterwards.
extern "C" fn become_program(child: &mut Child<'_>) -> ! {
    let step = child.prepare().err().unwrap_or_else(|| {
        child.execute();
        Step::Exec
    });
    child.failed = Some((step, last_errno()));
    // SAFETY: a system call only.
    unsafe { libc::_exit(127) }
}

/// A child between clone and execve. It makes system calls only, on what was prepared.
struct Child<'a> {
    plan: &'a Plan,
    ends: &'a Ends,
    failed: Option<(Step, Errno)>,
}

impl Child<'_> {
    fn prepare(&self) -> Result<(), Step> {
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
            // What was caught is the default already; what is ignored is not.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            ok(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut()), Step::SetUp)?;
            // Beside the three there is to be nothing, whatever a library opened without O_CLOEXEC.
            let close = libc::CLOSE_RANGE_CLOEXEC;
            ok_long(libc::syscall(libc::SYS_close_range, 3, u32::MAX, close), Step::SetUp)?;
            libc::umask(0o022);
            if let Some(user) = self.plan.user() {
                // The plain system calls: musl's functions would have the agent's threads do the same.
                // The memory is the agent's still, but no longer that user's to trace: this change makes it not dumpable (prctl(2)).
                let groups = user.groups.as_ptr();
                ok_long(libc::syscall(libc::SYS_setgroups, user.groups.len(), groups), Step::User)?;
                ok_long(libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid), Step::User)?;
                ok_long(libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid), Step::User)?;
            }
            ok(libc::chdir(self.plan.cwd().as_ptr()), Step::Cwd)
        }
    }

    /// Returns if no candidate could be executed, with the reason in errno: one that is there counts for more than those that are not.
    fn execute(&self) {
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
