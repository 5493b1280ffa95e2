//! The process of a machine: `voidrun vmm`.
//!
//! It is started with an empty environment and opens no path but the reports on itself in /proc: everything else comes as
//! descriptors, named by the specification, which is read from descriptor [`SPEC_FD`].

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::process::ExitCode;

use crate::control::{Greeting, Server};
use crate::devices::vsock::Published;
use crate::exit::{Exit, ExitReason};
use crate::jail::{self, SelfReport};
use crate::machine::{self, Begin, Disk, Limits, Machine, Parts, Steps};
use crate::spec::{Fds, MAX_PORTS, MachineSpec, PortFds, VERSION};

/// The descriptor of the specification: a file with a [`MachineSpec`] as JSON, read from its beginning.
pub const SPEC_FD: RawFd = 3;

/// A longer specification is refused, in bytes. The command line is the largest part of it.
const MAX_SPEC: u64 = 1 << 20;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the machine's specification (descriptor {SPEC_FD}) cannot be read")]
    Spec(#[source] io::Error),
    #[error("the machine's specification is of version {0}, and this program knows {VERSION}")]
    Version(u32),
    #[error("the machine's specification names descriptor {0} twice")]
    Twice(RawFd),
    #[error("the machine's specification has {0} ports, of which there may be {MAX_PORTS}")]
    Ports(usize),
    #[error("the machine's specification has neither a kernel nor a snapshot, or both")]
    Begin,
    #[error("the machine's descriptors cannot be taken")]
    Descriptors(#[source] io::Error),
    #[error("the machine's process cannot be locked in")]
    Jail(#[from] jail::JailError),
    #[error("the machine cannot be built")]
    Build(#[from] machine::BuildError),
}

/// Runs the machine that descriptor [`SPEC_FD`] describes, to its end. Success when it ran; why it ended is in `exit.json`.
///
/// To be called once, by a process that has nothing open but what the specification names, and standard error.
pub fn main() -> ExitCode {
    let steps = Steps::new();
    let (spec, mut exit_file) = match read_spec() {
        Ok(read) => read,
        Err(error) => return failed(&error, None),
    };
    match start(&spec, steps) {
        Ok((machine, control)) => {
            let exit = machine.run(control, Limits::of(&spec));
            report(&exit, exit_file.as_mut());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error, exit_file.as_mut()),
    }
}

fn failed(error: &StartError, exit_file: Option<&mut File>) -> ExitCode {
    let message = machine::chain(error);
    // Nothing is to be done when nobody reads it.
    let _ = writeln!(io::stderr(), "voidrun vmm: {message}");
    let reason = ExitReason::Failed { message };
    report(&Exit { reason, console: String::new(), network: None }, exit_file);
    ExitCode::FAILURE
}

/// Written at once, so that a reader finds all of it or nothing.
fn report(exit: &Exit, file: Option<&mut File>) {
    if let (Some(file), Ok(json)) = (file, serde_json::to_vec(exit))
        && let Err(error) = file.write_all(&json)
    {
        let _ = writeln!(io::stderr(), "voidrun vmm: cannot write why the machine has ended: {error}");
    }
}

fn read_spec() -> Result<(MachineSpec, Option<File>), StartError> {
    // SAFETY: by the contract of `main` the descriptor is nobody else's.
    let file = unsafe { OwnedFd::from_raw_fd(SPEC_FD) };
    let mut json = Vec::new();
    File::from(file).take(MAX_SPEC).read_to_end(&mut json).map_err(StartError::Spec)?;
    let spec: MachineSpec = serde_json::from_slice(&json).map_err(|e| StartError::Spec(e.into()))?;
    if spec.version != VERSION {
        return Err(StartError::Version(spec.version));
    }
    let mut numbers = numbers(&spec.fds);
    numbers.sort_unstable();
    if let Some(twice) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(StartError::Twice(twice[0]));
    }
    let exit = spec.fds.exit.map(take).transpose().map_err(StartError::Descriptors)?;
    Ok((spec, exit.map(File::from)))
}

fn start(spec: &MachineSpec, mut steps: Steps) -> Result<(Machine, Server), StartError> {
    let report = SelfReport::open().map_err(StartError::Descriptors)?;
    let parts = Parts {
        kvm: owned(spec.fds.kvm)?,
        begin: match (spec.fds.kernel, spec.fds.snapshot) {
            (Some(kernel), None) => {
                Begin::Boot { kernel: owned(kernel)?, initramfs: spec.fds.initramfs.map(owned).transpose()? }
            }
            (None, Some(snapshot)) => Begin::Restore {
                file: owned(snapshot.file)?,
                base: snapshot.base.map(owned).transpose()?,
                shared: snapshot.shared,
                touched: snapshot.touched.map(owned).transpose()?,
            },
            _ => return Err(StartError::Begin),
        },
        disk: match spec.fds.disk {
            Some(disk) => Some(Disk {
                base: owned(disk.base)?,
                lower: disk.lower.map(owned).transpose()?,
                diff: owned(disk.diff)?,
            }),
            None => None,
        },
        vsock: owned(spec.fds.vsock)?,
        ready: owned(spec.fds.ready)?,
        owner: spec.fds.owner.map(owned).transpose()?,
        // Held, and dropped by the kernel however the process ends.
        lock: spec.fds.lock.map(owned).transpose()?,
        ports: published(&spec.fds)?,
    };
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map_err(|e| StartError::Descriptors(e.into()))?;
    let greeting = Greeting { version: VERSION, id: spec.id.clone() };
    let control = Server::new(owned(spec.fds.control)?, pidfd, &greeting).map_err(StartError::Descriptors)?;
    let own = [&control.fds()[..], &report.fds()].concat();
    let keep = [numbers(&spec.fds), own, vec![libc::STDERR_FILENO]].concat();
    let layers = jail::enter_process(&keep, spec.network.is_some())?;
    steps.done("jail");
    let machine = Machine::build(spec, parts, layers, report, steps)?;
    Ok((machine, control))
}

fn published(fds: &Fds) -> Result<Vec<Published>, StartError> {
    if fds.ports.len() > MAX_PORTS {
        return Err(StartError::Ports(fds.ports.len()));
    }
    let publish =
        |port: &PortFds| Published::new(owned(port.listener)?, &port.target).map_err(StartError::Descriptors);
    fds.ports.iter().map(publish).collect()
}

fn owned<T: From<OwnedFd>>(number: RawFd) -> Result<T, StartError> {
    Ok(take(number).map_err(StartError::Descriptors)?.into())
}

/// The descriptor with this number; an error where none is open.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only looked at; where it is not open the call says so.
    let borrowed = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed)?;
    // SAFETY: it is open, by the contract of `main` nobody else's, and no number stands twice in the specification.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Every number that the specification names.
fn numbers(fds: &Fds) -> Vec<RawFd> {
    let disk = fds.disk.map(|disk| [Some(disk.base), disk.lower, Some(disk.diff)]);
    [
        Some(fds.kvm),
        fds.kernel,
        fds.snapshot.map(|snapshot| snapshot.file),
        fds.snapshot.and_then(|snapshot| snapshot.base),
        fds.snapshot.and_then(|snapshot| snapshot.touched),
        fds.initramfs,
        fds.lock,
        Some(fds.control),
        Some(fds.vsock),
        Some(fds.ready),
    ]
    .into_iter()
    .chain([fds.exit, fds.owner])
    .chain(disk.into_iter().flatten())
    .flatten()
    .chain(fds.ports.iter().map(|port| port.listener))
    .collect()
}
