//! A saved machine: one file with its RAM and all other state.
//!
//! ```text
//!   0        the header, 64 bytes: where the rest is, and its checksums
//!   4096     pages of the guest's RAM: those of all runs, one behind the other
//!   behind   the runs, and the state of vCPUs, interrupt controllers and devices, as JSON
//! ```
//!
//! A page of RAM that is in no run is as in the snapshot's base, which is a snapshot that has none, or zero where there is no base. The pages
//! are not read when a machine is restored: they are mapped, over those of the base and memory that is anonymous, and their checksum is
//! for whoever asks for it ([`verify`]).

mod header;
mod origin;
mod ram;
mod touched;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::GuestMemory;
use crate::arch::x86_64::{ArchError, VcpuState, Vm, VmState};
use crate::jail::Pagemap;
use crate::memory::{self, Mapped, MemoryError, PAGE, Pages, Runs};
use crate::spec::{Cpus, MachineSpec, MemoryMib};
use crate::virtio::{Transport, TransportState};
use header::Header;
use origin::Base;
use ram::Ram;

pub use header::HeaderError;
pub(crate) use origin::Origin;
pub use ram::verify;
pub(crate) use touched::{Copying, Touched, TouchedError};

/// More is no state, in bytes: of 32 vCPUs with the largest XSAVE areas it is 4 MiB, and of the most runs there may be an eighth of one.
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

/// What is behind the pages: the state, and where the pages are in the RAM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Trailer<S> {
    /// How the snapshot begins that it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<Header>,
    runs: Runs,
    machine: S,
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
    /// Whether it is over another one, its base, without which it is of no use.
    pub has_base: bool,
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
    /// What it is over is not there, or is something else.
    #[error("the snapshot that this one was taken over is {0}")]
    Base(&'static str),
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
    origin: Option<&Origin>,
    machine: &MachineState,
) -> Result<(), SnapshotError> {
    let Ram { runs, crc } = ram::write(file, memory, pagemap, origin).map_err(failed("writing"))?;
    let pages_len = runs.pages() * PAGE;
    let base = origin.and_then(|origin| Some(origin.base.as_ref()?.header));
    let json = serde_json::to_vec(&Trailer { base, runs, machine }).map_err(SnapshotError::State)?;
    let (state_len, state_crc) = (json.len() as u64, crc32c::crc32c(&json));
    let header = Header { pages_len, pages_crc: crc, state_len, state_crc, used: false };
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
    /// How the snapshot begins that it is over.
    base: Option<Header>,
    runs: Runs,
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
        let trailer: Trailer<MachineState> = serde_json::from_slice(&json).map_err(SnapshotError::State)?;
        let Trailer { base, runs, machine: state } = trailer;
        let sound = state.vcpus.len() == usize::from(state.cpus.get())
            && runs.pages() * PAGE == header.pages_len
            && runs.end() * PAGE <= state.memory.bytes()
            && runs.iter().len() as u64 <= ram::MAX_RUNS;
        if !sound {
            return Err(SnapshotError::Other("more or fewer parts than it says".into()));
        }
        Ok(Self { header, base, runs, state })
    }

    fn summary(&self) -> Summary {
        let Self { header, state, base, .. } = self;
        let network = state.devices.iter().any(|(name, _)| name == "net");
        let (has_base, used) = (base.is_some(), header.used);
        Summary { cpus: state.cpus, memory: state.memory, network, has_base, used }
    }

    /// The snapshot in `file`, over that in `base`, for a machine by `spec`; and its RAM, which is the files' until the machine writes to
    /// it. `shared`: the file stays.
    pub(crate) fn open(
        file: &File,
        base: Option<&File>,
        shared: bool,
        spec: &MachineSpec,
    ) -> Result<(Self, Origin, GuestMemory), SnapshotError> {
        let mut saved = Self::read(file)?;
        let hold = |file: &File| file.try_clone().map_err(failed("holding"));
        let MachineState { cpus, memory, .. } = saved.state;
        if (cpus, memory) != (spec.cpus, spec.memory) {
            let (cpus, mib) = (cpus.get(), u32::from(memory));
            return Err(SnapshotError::Other(format!("{cpus} CPUs and {mib} MiB of memory")));
        }
        if saved.header.used {
            return Err(SnapshotError::Used);
        }
        let (header, runs) = (saved.header, std::mem::take(&mut saved.runs));
        let none = Runs::default();
        let (base, of_base, over) = match (saved.base, base) {
            (None, _) if shared => (Some(Base { file: hold(file)?, header }), runs, none),
            (None, _) => (None, none, runs),
            (Some(_), None) => return Err(SnapshotError::Base("not there")),
            (Some(header), Some(file)) => {
                let found = Self::read(file)?;
                if found.header != header || found.base.is_some() || found.state.memory != memory {
                    return Err(SnapshotError::Base("another one now"));
                }
                (Some(Base { file: hold(file)?, header }), found.runs, runs)
            }
        };
        let mapped = Mapped::new(of_base, over, memory.bytes());
        let pages = |file, runs| Pages { file, offset: header::PAGES_START, runs };
        let of_base = base.iter().map(|base| pages(&base.file, &mapped.base));
        let files: Vec<Pages<'_>> = of_base.chain([pages(file, &mapped.over)]).collect();
        let memory = memory::map(memory, &files)?;
        let origin = Origin { base, mapped: Arc::new(mapped) };
        Ok((saved, origin, memory))
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
