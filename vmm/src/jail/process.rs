//! The layers that hold for the whole process.

use std::io;
use std::os::fd::{IntoRawFd as _, RawFd};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr as _, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::filter::digests;
use super::{JailError, Landlock, Layers, Limits};

/// 1,023 connections on vsock and as many that have not yet said to which port, some eventfds a device, 32 vCPUs.
const OPEN_FILES: u64 = 4096;
/// With a network: a descriptor for each of its connections as well.
const OPEN_FILES_WITH_NETWORK: u64 = 16384;

/// Takes from the process whatever a machine does not need; see the module. Descriptors that are not in `keep` are closed, and
/// no value that owns one of them may be used afterwards; of 0, 1 and 2, those not in `keep` become `/dev/null`, so that
/// no later file gets the number that messages are written to. The environment is cleared: the launcher passes none.
///
/// `network`: the machine has one, so that its process must be able to connect by TCP, and to have more descriptors.
///
/// RLIMIT_NPROC stays: it counts all threads of the user, not those of this process.
///
/// # Errors
/// A step failed. Landlock alone may be missing; [`Layers`] says so.
pub fn enter_process(keep: &[RawFd], network: bool) -> Result<Layers, JailError> {
    one_thread()?;
    // SAFETY: no other thread exists that could read the environment meanwhile.
    if unsafe { libc::clearenv() } != 0 {
        return Err(step("clearing the environment")(Errno::NOMEM));
    }
    let _ = rustix::process::umask(Mode::from_raw_mode(0o077));
    close_all_but(keep)?;
    let limits = set_limits(if network { OPEN_FILES_WITH_NETWORK } else { OPEN_FILES })?;
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true).map_err(step("no_new_privs"))?;
    let landlock = grant_nothing(network)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("clearing dumpable"))?;
    Ok(Layers {
        no_new_privs: rustix::thread::no_new_privs().map_err(step("reading no_new_privs"))?,
        dumpable: rustix::process::dumpable_behavior().map_err(step("reading dumpable"))?
            != DumpableBehavior::NotDumpable,
        capabilities: capabilities_left()?,
        landlock,
        limits,
        namespaces: false,
        seccomp: digests(network)?,
    })
}

fn step(step: &'static str) -> impl Fn(Errno) -> JailError {
    move |errno| JailError::Step { step, source: errno.into() }
}

fn one_thread() -> Result<(), JailError> {
    // A directory has a link from its parent, from itself, and from each subdirectory.
    let tasks = rustix::fs::stat("/proc/self/task").map_err(step("counting the threads"))?;
    match tasks.st_nlink.saturating_sub(2) {
        1 => Ok(()),
        threads => Err(JailError::Threads { threads }),
    }
}

fn close_all_but(keep: &[RawFd]) -> Result<(), JailError> {
    for &fd in keep {
        // SAFETY: F_GETFD touches no memory, and fails for a number that is not open.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(JailError::NotOpen { fd, source: io::Error::last_os_error() });
        }
    }
    stand_in(keep)?;
    let mut keep = [keep, &[0, 1, 2]].concat();
    keep.sort_unstable();
    let mut next = 0;
    for fd in keep {
        close(next, fd)?;
        next = fd.saturating_add(1);
    }
    close(next, RawFd::MAX)
}

/// Closes the descriptors from `first` up to, without, `end`.
fn close(first: RawFd, end: RawFd) -> Result<(), JailError> {
    if first >= end {
        return Ok(());
    }
    // SAFETY: the kernel touches no memory here. That nobody uses what is closed is asked of the caller of
    // `enter_process`.
    match unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) } {
        0 => Ok(()),
        _ => Err(JailError::Step { step: "closing descriptors", source: io::Error::last_os_error() }),
    }
}

/// Makes `/dev/null` of those of 0, 1 and 2 that are not in `keep`.
fn stand_in(keep: &[RawFd]) -> Result<(), JailError> {
    let null =
        rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).map_err(step("opening /dev/null"))?;
    // Closed with the rest; or it has become one of the three itself, where one was not open.
    let null = null.into_raw_fd();
    for fd in (0..3).filter(|fd| !keep.contains(fd)) {
        // SAFETY: dup2 touches no memory; as for what `fd` was, see `close`.
        if unsafe { libc::dup2(null, fd) } < 0 {
            let source = io::Error::last_os_error();
            return Err(JailError::Step { step: "replacing standard input or output", source });
        }
    }
    Ok(())
}

fn set_limits(open_files: u64) -> Result<Limits, JailError> {
    let set = |resource, wanted: Option<u64>| {
        let maximum = rustix::process::getrlimit(resource).maximum;
        // No limit, or no more than there is: an ordinary user cannot raise it.
        let both =
            wanted.map_or(maximum, |wanted| Some(maximum.map_or(wanted, |maximum| wanted.min(maximum))));
        rustix::process::setrlimit(resource, Rlimit { current: both, maximum: both }).map(|()| both)
    };
    Ok(Limits {
        core: set(Resource::Core, Some(0)).map_err(step("limiting core files"))?.unwrap_or(u64::MAX),
        open_files: set(Resource::Nofile, Some(open_files))
            .map_err(step("limiting open files"))?
            .unwrap_or(u64::MAX),
        // A disk may be larger than a soft limit that some login shell has set.
        file_size: set(Resource::Fsize, None).map_err(step("unlimiting the size of files"))?,
    })
}

/// Only root, or whoever was started with some, has any.
fn drop_capabilities() -> Result<(), JailError> {
    let have = rustix::thread::capabilities(None).map_err(step("reading the capabilities"))?;
    if have.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // EINVAL: an older kernel does not know the capability.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(step("emptying the capability bounding set")(errno)),
            }
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(step("emptying the ambient capabilities"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(step("dropping the capabilities"))
}

/// The ambient set is a part of the permitted one.
fn capabilities_left() -> Result<u64, JailError> {
    let left = rustix::thread::capabilities(None).map_err(step("reading the capabilities"))?;
    Ok((left.effective | left.permitted | left.inheritable).bits())
}

/// Denies all that the newest interface known to the crate and to the kernel can deny; with a network all but what it takes to
/// connect. Without one, no thread could be given a connection by any mistake in the filters.
fn grant_nothing(network: bool) -> Result<Option<Landlock>, JailError> {
    let newest = ABI::V10;
    let denied = |abi| {
        let all = AccessNet::from_all(abi);
        // A datagram socket that is connected is bound with it.
        if network { all & AccessNet::BindTcp } else { all }
    };
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(newest))
        .and_then(|rules| rules.handle_access(denied(newest)))
        .and_then(|rules| rules.scope(Scope::from_all(newest)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(JailError::Landlock)?;
    let LandlockStatus::Available { effective_abi: abi, .. } = status.landlock else { return Ok(None) };
    if status.ruleset == RulesetStatus::NotEnforced {
        return Ok(None);
    }
    Ok(Some(Landlock {
        abi: abi as u32,
        files: AccessFs::from_all(abi).bits(),
        net: denied(abi).bits(),
        scope: Scope::from_all(abi).bits(),
    }))
}
