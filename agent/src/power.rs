//! What concerns the whole machine: its end, and its return from a snapshot.

use crate::identity::{self, IdentityError};
use crate::serve::with_source;
use crate::{Agent, failure, kmsg, lock, refusal};
use protocol::{Config, Error, ErrorCode};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::Signal;
use rustix::system::RebootCommand;
use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime_dynamic, clock_settime};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

const DEFAULT_GRACE: Duration = Duration::from_secs(2);

/// How long to wait for killed processes; one that the kernel holds up cannot hold up the power-off.
const AFTER_KILL: Duration = Duration::from_millis(500);

/// Bytes of entropy that a restore brings.
const ENTROPY: std::ops::RangeInclusive<usize> = 32..=512;

/// Ends every process, writes the disk back and powers off.
pub(crate) fn off(agent: &Agent, grace_ms: Option<u64>) -> ! {
    signal_all(Signal::TERM);
    agent.processes.wait_idle(grace_ms.map_or(DEFAULT_GRACE, Duration::from_millis));
    signal_all(Signal::KILL);
    agent.processes.wait_idle(AFTER_KILL);
    rustix::fs::sync();
    // Then the journal is empty and the next mount has nothing to recover. It fails if a file is open for writing still.
    let flags = MountFlags::RDONLY;
    if let Err(error) = rustix::mount::mount_remount("/", flags, c"") {
        kmsg::warning(format_args!("/: remounting read-only: {error}"));
    }
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        kmsg::emergency(format_args!("power off: {error}"));
    }
    // The end of PID 1 is a kernel panic, which ends the machine as well.
    std::process::exit(1)
}

/// To every process but this one, which is PID 1.
fn signal_all(signal: Signal) {
    // SAFETY: takes no pointers. As PID 1, -1 means all others; for any other process it would mean the user's whole session, so
    // that is ruled out.
    if std::process::id() == 1 {
        unsafe { libc::kill(-1, signal.as_raw()) };
    }
}

/// Halts every command, until the machine has been restored or was not saved after all.
pub(crate) fn suspend(agent: &Agent) {
    agent.saves.fetch_add(1, Ordering::Relaxed);
    agent.cgroups.freeze();
}

/// Lets them go on in a machine that was not saved.
pub(crate) fn go_on(agent: &Agent) {
    agent.cgroups.thaw();
    // The host may ask for it where it does not know whether there was anything to undo.
    let _ = agent.saves.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saves| saves.checked_sub(1));
}

/// Reseeds the kernel's random numbers, which a restored machine shares with all its siblings otherwise, sets the clock, and makes the
/// machine what `config` says, if it says anything; then the commands go on.
pub(crate) fn reseed(
    agent: &Agent,
    wall_time_ns: u64,
    entropy: &[u8],
    config: Option<Box<Config>>,
) -> Result<(), Error> {
    if !ENTROPY.contains(&entropy.len()) {
        let message =
            format!("entropy: {} bytes, not from {} to {}", entropy.len(), ENTROPY.start(), ENTROPY.end());
        return Err(refusal(ErrorCode::BadRequest, message));
    }
    add_entropy(entropy).map_err(|errno| failure(ErrorCode::Internal, "/dev/urandom", errno))?;
    let told = Timespec {
        tv_sec: (wall_time_ns / 1_000_000_000).cast_signed(),
        tv_nsec: (wall_time_ns % 1_000_000_000).cast_signed(),
    };
    let set = set_clock(Some(told));
    if let Some(config) = config {
        // As what it was, nothing must run any more.
        become_another(agent, *config).map_err(|error| refusal(ErrorCode::Internal, with_source(&error)))?;
    }
    // Also without the time: the host cannot end commands well that stand still.
    agent.cgroups.thaw();
    set.map_err(|errno| failure(ErrorCode::Internal, "the clock", errno))
}

/// Sets the clock to what the host's says now, or where KVM does not tell it to what somebody was `told`: on a host that is short of
/// CPU, that was right some seconds ago.
pub(crate) fn set_clock(told: Option<Timespec>) -> Result<(), Errno> {
    match time_of_host().ok().or(told) {
        Some(time) => clock_settime(ClockId::Realtime, time),
        None => Ok(()),
    }
}

fn time_of_host() -> Result<Timespec, Errno> {
    // What commands may have put in its place neither holds this up nor is a clock.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let clock = rustix::fs::openat(CWD, c"/dev/ptp0", flags, Mode::empty())?;
    clock_gettime_dynamic(DynamicClockId::Dynamic(clock.as_fd()))
}

fn become_another(agent: &Agent, config: Config) -> Result<(), IdentityError> {
    let mut current = lock(&agent.config);
    identity::change(&current, &config)?;
    *current = config;
    Ok(())
}

fn add_entropy(entropy: &[u8]) -> Result<(), Errno> {
    // linux/random.h
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203_u32 as libc::Ioctl;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let file = rustix::fs::openat(CWD, c"/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // struct rand_pool_info { int entropy_count (bits); int buf_size (bytes); __u32 buf[]; }
    let mut pool = Vec::with_capacity(8 + entropy.len());
    pool.extend_from_slice(&(entropy.len() as i32 * 8).to_ne_bytes());
    pool.extend_from_slice(&(entropy.len() as i32).to_ne_bytes());
    pool.extend_from_slice(entropy);
    // SAFETY: the kernel reads the two counts and as many bytes as the second says, all of which `pool` has; it copies them as bytes,
    // so their alignment does not matter.
    if unsafe { libc::ioctl(file.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) } < 0 {
        return Err(last_errno());
    }
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(file.as_raw_fd(), RNDRESEEDCRNG) } < 0 {
        return Err(last_errno());
    }
    Ok(())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
