//! A saved machine: one file with its RAM and all other state.
//!
//! ```text
//!   0        the header, 64 bytes: where the rest is, and its checksums
//!   2 MiB    guest RAM, its parts one behind the other; pages of zeros are holes
//!   behind   the state of vCPUs, interrupt controllers and devices, as JSON
//! ```
//!
//! The RAM is not read when a machine is restored: it is mapped, and its checksum is for whoever asks for it ([`verify`]).

mod header;
mod ram;
mod touched;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::GuestMemory;
use crate::arch::x86_64::{ArchError, VcpuState, Vm, VmState};
use crate::jail::Pagemap;
use crate::memory::{self, MemoryError};
use crate::spec::{Cpus, MachineSpec, MemoryMib};
use crate::virtio::{Transport, TransportState};
use header::Header;

pub use header::HeaderError;
pub use ram::verify;
pub(crate) use touched::{Copying, Touched, TouchedError};

/// More is no state, in bytes: of 32 vCPUs with the largest XSAVE areas it is 4 MiB.
const MAX_STATE: u64 = 16 << 20;

/// All of a machine but its RAM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MachineState {
    pub(crate) cpus: Cpus,
    pub(crate) memory: MemoryMib,
    pub(crate) vm: VmState,
    pub(crate) vcpus: Vec<VcpuState>,
    /// With their names, in the order of their places.
    pub(crate) devices: Vec<(String, TransportState)>,
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How many vCPUs.
    pub cpus: Cpus,
    /// How much guest RAM.
    pub memory: MemoryMib,
    /// Whether it has a network device.
    pub network: bool,
    /// Whether a machine has gone on from it: the disk is another one since.
    pub used: bool,
}

/// A machine that cannot be saved, or a file that none can go on from.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not a snapshot, or a damaged one, or one of another time.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file cannot be read or written.
    #[error("{what} the snapshot")]
    File {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The state has changed since it was written.
    #[error("the snapshot is damaged: the checksum of {0} is another one")]
    Checksum(&'static str),
    /// It is no state that this program writes.
    #[error("the state in the snapshot cannot be read")]
    State(#[source] serde_json::Error),
    /// The machine is to be another one than was saved.
    #[error("the snapshot is of a machine with {0}, and the sandbox has another")]
    Other(String),
    /// A machine has gone on from it already.
    #[error("a machine has gone on from this snapshot already, and the disk is not what it was")]
    Used,
    /// KVM refuses.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// A device refuses.
    #[error(transparent)]
    Device(#[from] crate::virtio::DeviceError),
    /// The RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::File { what, source }
}

/// Writes a machine that stands still to an empty file. It is for whoever gives the file a name to see to it that it is on the disk before:
/// the machine may go on meanwhile. RAM that `pagemap` shows to be untouched is not read.
pub(crate) fn write(
    file: &File,
    memory: &GuestMemory,
    pagemap: Option<&Pagemap>,
    state: &MachineState,
) -> Result<(), SnapshotError> {
    let ram = ram::write(file, memory, pagemap).map_err(failed("writing"))?;
    let json = serde_json::to_vec(state).map_err(SnapshotError::State)?;
    let header = Header { ram, state_len: json.len() as u64, state_crc: crc32c::crc32c(&json), used: false };
    file.write_all_at(&json, header.state_start()).map_err(failed("writing"))?;
    // The header last: without it the file is none.
    file.write_all_at(&header.encode(), 0).map_err(failed("writing"))
}

/// What the snapshot in `file` is of. Its RAM is not looked at.
///
/// # Errors
/// The file is no snapshot, is damaged, or is of another version.
pub fn inspect(file: &File) -> Result<Summary, SnapshotError> {
    Ok(Saved::read(file)?.summary())
}

/// A snapshot as it is read.
#[derive(Debug)]
pub(crate) struct Saved {
    header: Header,
    state: MachineState,
}

impl Saved {
    fn read(file: &File) -> Result<Self, SnapshotError> {
        let mut bytes = [0; header::LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(HeaderError::NoSnapshot.into());
            }
            read => read.map_err(failed("reading"))?,
        }
        let header = Header::decode(&bytes)?;
        let length = file.metadata().map_err(failed("reading"))?.len();
        if length != header.state_start() + header.state_len {
            return Err(HeaderError::Length { found: length }.into());
        }
        let mut json = vec![0; header.state_len as usize];
        file.read_exact_at(&mut json, header.state_start()).map_err(failed("reading"))?;
        if crc32c::crc32c(&json) != header.state_crc {
            return Err(SnapshotError::Checksum("its state"));
        }
        let state: MachineState = serde_json::from_slice(&json).map_err(SnapshotError::State)?;
        if state.vcpus.len() != usize::from(state.cpus.get()) || state.memory.bytes() != header.ram.len {
            return Err(SnapshotError::Other("more or fewer parts than it says".into()));
        }
        Ok(Self { header, state })
    }

    fn summary(&self) -> Summary {
        let Self { header, state } = self;
        let network = state.devices.iter().any(|(name, _)| name == "net");
        Summary { cpus: state.cpus, memory: state.memory, network, used: header.used }
    }

    /// The snapshot in `file`, for a machine by `spec`, and its RAM: it is the file's until the machine writes to it.
    pub(crate) fn open(file: &File, spec: &MachineSpec) -> Result<(Self, GuestMemory), SnapshotError> {
        let saved = Self::read(file)?;
        let MachineState { cpus, memory, .. } = saved.state;
        if (cpus, memory) != (spec.cpus, spec.memory) {
            let (cpus, mib) = (cpus.get(), u32::from(memory));
            return Err(SnapshotError::Other(format!("{cpus} CPUs and {mib} MiB of memory")));
        }
        if saved.header.used {
            return Err(SnapshotError::Used);
        }
        Ok((saved, memory::map(memory, file, header::RAM_START)?))
    }

    /// The vCPUs, and all that KVM keeps of the machine besides.
    pub(crate) fn vcpus(&self, vm: &Vm) -> Result<Vec<VcpuFd>, SnapshotError> {
        let restored = |(state, id): (&VcpuState, u8)| {
            let vcpu = vm.create_bare_vcpu(id)?;
            state.restore(vm, &vcpu)?;
            Ok::<_, SnapshotError>(vcpu)
        };
        let vcpus = self.state.vcpus.iter().zip(0..).map(restored).collect::<Result<_, _>>()?;
        self.state.vm.restore(vm)?;
        Ok(vcpus)
    }

    /// Gives each device its state; they are paused then.
    pub(crate) fn devices(&mut self, transports: &mut [Transport]) -> Result<(), SnapshotError> {
        let names: Vec<&str> = transports.iter().map(|transport| transport.info().name).collect();
        let saved: Vec<&str> = self.state.devices.iter().map(|(name, _)| &**name).collect();
        if saved != names {
            return Err(SnapshotError::Other(format!("the devices {}", saved.join(", "))));
        }
        for (transport, (_, state)) in transports.iter_mut().zip(self.state.devices.drain(..)) {
            transport.restore(state)?;
        }
        Ok(())
    }
}

/// Marks the snapshot in `file`, from which a machine is about to go on: from then on its disk is another one than it was. The mark
/// is on the disk when this returns.
///
/// # Errors
/// The file cannot be written.
pub fn mark_used(file: &File) -> io::Result<()> {
    header::mark_used(file)
}

#[cfg(test)]
mod tests;
