//! The ends of a command's standard input and output: pipes, or a terminal.

use crate::failure;
use protocol::{Error, ErrorCode, Exec, WindowSize};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use std::os::fd::{AsFd, OwnedFd};

/// The agent's ends; none of them blocks.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// If it is a terminal, of which `stdin` and `stdout` are the same end.
    pub(super) terminal: Option<OwnedFd>,
}

/// The command's ends.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// What an Exec asks for, usable by the user with this uid.
pub(super) fn open(exec: &Exec, uid: Option<u32>) -> Result<(Stdio, Ends), Error> {
    let opened = match exec.tty {
        Some(size) => terminal(size, uid),
        None => pipes(exec.stdin && !exec.detached, uid),
    };
    opened.map_err(|errno| failure(ErrorCode::Internal, "standard input and output", errno))
}

fn pipes(with_input: bool, uid: Option<u32>) -> Result<(Stdio, Ends), Errno> {
    let (stdin_end, stdin) = if with_input {
        let (read, write) = pipe(uid)?;
        nonblocking(&write)?;
        (read, Some(write))
    } else {
        (rustix::fs::openat(CWD, c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
    };
    let (stdout, stdout_end) = pipe(uid)?;
    let (stderr, stderr_end) = pipe(uid)?;
    nonblocking(&stdout)?;
    nonblocking(&stderr)?;
    let ours = Stdio { stdin, stdout: Some(stdout), stderr: Some(stderr), terminal: None };
    Ok((ours, Ends { stdin: stdin_end, stdout: stdout_end, stderr: stderr_end }))
}

fn terminal(size: WindowSize, uid: Option<u32>) -> Result<(Stdio, Ends), Errno> {
    // O_CLOEXEC at once: another thread may be forking.
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = rustix::fs::openat(
        CWD,
        name.as_c_str(),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    own(&slave, uid)?;
    resize(&master, size)?;
    nonblocking(&master)?;
    let ends = Ends {
        stdin: slave.try_clone().map_err(|error| errno(&error))?,
        stdout: slave.try_clone().map_err(|error| errno(&error))?,
        stderr: slave,
    };
    let stdio = Stdio {
        stdin: Some(master.try_clone().map_err(|error| errno(&error))?),
        stdout: Some(master.try_clone().map_err(|error| errno(&error))?),
        stderr: None,
        terminal: Some(master),
    };
    Ok((stdio, ends))
}

/// Sets a terminal's size; the foreground processes get SIGWINCH.
pub(crate) fn resize(terminal: &OwnedFd, size: WindowSize) -> Result<(), Errno> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}

fn pipe(uid: Option<u32>) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    own(&read, uid)?;
    Ok((read, write))
}

/// Lets the user open it once more, as /dev/stdout or /dev/tty's name.
fn own(fd: impl AsFd, uid: Option<u32>) -> Result<(), Errno> {
    uid.map_or(Ok(()), |uid| rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>))
}

fn nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
