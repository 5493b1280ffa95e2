//! Whether the KVM of this host runs guests.
//!
//! A `/dev/kvm` that opens says little: a software KVM makes machines and vCPUs, and then does not carry what a kernel
//! does in supervisor mode. So a tiny guest is run, that does these things and nothing else.
//!
//! Two threads: one owns the vCPU, the caller's waits for it and, at the deadline, kicks it until it comes back.

mod guest;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

pub use guest::Step;

use crate::arch::x86_64::{self as arch, ArchError};

/// The guest takes microseconds; an emulated host on a busy machine takes long to get there.
const DEADLINE: Duration = Duration::from_secs(10);
/// A kick that comes just before KVM_RUN is lost, so it is repeated.
const KICK_EVERY: Duration = Duration::from_millis(20);
/// A thread that so many kicks have not brought back is left behind.
const KICKS: u32 = 100;

/// Why this KVM is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not a `/dev/kvm`, or one that lacks what every machine needs.
    #[error(transparent)]
    Lacks(ArchError),
    /// The guest could not be made.
    #[error("cannot {action}")]
    Setup {
        /// What was being done.
        action: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The guest has stopped before it was done.
    #[error("a guest cannot {step}: {end}")]
    Guest {
        /// What it was about to do.
        step: Step,
        /// How it has stopped.
        end: String,
    },
    /// The guest was not done in time.
    #[error("a guest did not {step} within {} s", deadline.as_secs_f32())]
    Timeout {
        /// What it was about to do.
        step: Step,
        /// The time it had.
        deadline: Duration,
    },
    /// KVM does not give the vCPU back.
    #[error("KVM does not stop a guest that it is told to stop")]
    Stuck,
}

/// Runs a tiny guest on an open `/dev/kvm`: it enters user mode, comes back by an exception and by SYSCALL, and does in
/// supervisor mode what a software KVM does not carry. Takes some ms, and at most 12 s.
///
/// # Errors
/// KVM lacks a feature, refuses to make the guest, or does not run it as a CPU would: see [`ProbeError`].
pub fn kvm(kvm: File) -> Result<(), ProbeError> {
    let kvm = arch::kvm(kvm.into()).map_err(ProbeError::Lacks)?;
    run(kvm, &guest::CODE, DEADLINE)
}

fn setup<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> ProbeError {
    move |source| ProbeError::Setup { action, source: source.into() }
}

/// The same for errors of KVM, which are numbers.
fn ioctl(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |error| ProbeError::Setup { action, source: io::Error::from_raw_os_error(error.errno()) }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Runs `code` on a thread of its own until it is done or `deadline` has passed.
fn run(kvm: Kvm, code: &'static [u8], deadline: Duration) -> Result<(), ProbeError> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(ioctl("handle a signal"))?;
    let expired = Arc::new(AtomicBool::new(false));
    let (done, result) = sync_channel(1);
    let seen = Arc::clone(&expired);
    let thread = std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || {
            // The receiver is gone when it has not come back for too long.
            let _ = done.send(boot(&kvm, code, &seen, deadline));
        })
        .map_err(setup("start a thread"))?;
    let mut outcome = result.recv_timeout(deadline);
    for _ in 0..KICKS {
        match outcome {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(ProbeError::Stuck),
            Err(RecvTimeoutError::Timeout) => {}
        }
        expired.store(true, Ordering::Release);
        thread.kill(SIGRTMIN()).map_err(ioctl("stop the guest"))?;
        outcome = result.recv_timeout(KICK_EVERY);
    }
    Err(ProbeError::Stuck)
}

/// Makes the guest and follows it from step to step.
fn boot(kvm: &Kvm, code: &[u8], expired: &AtomicBool, deadline: Duration) -> Result<(), ProbeError> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), guest::MEMORY)]).map_err(|e| {
        ProbeError::Setup { action: "allocate the guest's memory", source: io::Error::other(e) }
    })?;
    guest::load(&memory, code)
        .map_err(|e| ProbeError::Setup { action: "write the guest's memory", source: io::Error::other(e) })?;
    let host = memory
        .get_host_address(GuestAddress(0))
        .map_err(|e| ProbeError::Setup { action: "find the guest's memory", source: io::Error::other(e) })?;

    let vm = kvm.create_vm().map_err(ioctl("create a virtual machine"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: guest::MEMORY as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: `memory` is mapped at `host` for so many bytes and dropped after the vCPU, whose runs alone reach it.
    unsafe { vm.set_user_memory_region(region) }.map_err(ioctl("give the guest memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(ioctl("create a vCPU"))?;
    guest::prepare(kvm, &vcpu)?;

    for (step, expected) in guest::STEPS {
        let word = next_word(&mut vcpu, step, expired, deadline)?;
        if word != expected {
            return Err(ProbeError::Guest {
                step,
                end: format!("it says {word:#x} instead of {expected:#x}"),
            });
        }
    }
    if guest::has_exchanged(&memory) {
        Ok(())
    } else {
        Err(ProbeError::Guest { step: Step::Exchange, end: "its memory does not show it".into() })
    }
}

/// Runs the guest until it says something.
fn next_word(
    vcpu: &mut VcpuFd,
    step: Step,
    expired: &AtomicBool,
    deadline: Duration,
) -> Result<u8, ProbeError> {
    loop {
        let end = match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::PORT, &[word])) => return Ok(word),
            Ok(VcpuExit::Intr) => None,
            Ok(VcpuExit::Shutdown) => Some("triple fault".to_owned()),
            Ok(VcpuExit::InternalError) => Some("KVM does not carry it out".to_owned()),
            Ok(VcpuExit::FailEntry(reason, _)) => Some(format!("the CPU refuses it, reason {reason:#x}")),
            Ok(other) => Some(format!("{other:?}")),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => None,
            Err(error) => Some(error.to_string()),
        };
        match end {
            Some(end) => return Err(ProbeError::Guest { step, end }),
            None if expired.load(Ordering::Acquire) => return Err(ProbeError::Timeout { step, deadline }),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a device of KVM at all.
    #[test]
    fn another_file() {
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(kvm(file), Err(ProbeError::Lacks(ArchError::Version(-1)))));
    }

    #[test]
    fn a_guest_that_never_ends() {
        let Ok(file) = File::options().read(true).write(true).open("/dev/kvm") else {
            println!("there is no /dev/kvm to test with");
            return;
        };
        let kvm = arch::kvm(file.into()).unwrap();
        // jmp to itself
        let deadline = Duration::from_millis(100);
        let error = run(kvm, &[0xeb, 0xfe], deadline).unwrap_err();
        assert!(matches!(error, ProbeError::Timeout { step: Step::Exchange, .. }), "{error}");
    }
}
