//! What a machine is made of. Parsed and checked once; whoever holds a [`MachineSpec`] need not check it again.

use std::os::fd::RawFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The version of [`MachineSpec`] and of the control socket.
pub const VERSION: u32 = 1;

/// So many ports of the host may be published at once.
pub const MAX_PORTS: usize = 64;

/// The longest preface of a published port, in bytes.
pub const MAX_PREFACE: usize = 256;

/// A machine to run, with the numbers of the descriptors that it is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineSpec {
    /// [`VERSION`].
    pub version: u32,
    /// The sandbox's id, for logs and the control socket.
    pub id: String,
    /// How many vCPUs.
    pub cpus: Cpus,
    /// How much guest RAM.
    pub memory: MemoryMib,
    /// The kernel's command line, without what describes the machine: that is in ACPI.
    pub cmdline: String,
    /// Open files.
    pub fds: Fds,
    /// The guest's network; none where it has no network device.
    #[serde(default)]
    pub network: Option<net::engine::Config>,
    /// The agent has to come up within so many ms.
    pub boot_timeout_ms: u64,
    /// The machine ends after so many ms.
    pub ttl_ms: Option<u64>,
    /// The machine ends when no client has had a stream to the guest for so many ms.
    pub idle_ms: Option<u64>,
}

/// Descriptors that the process of the machine inherits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fds {
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: RawFd,
    /// The kernel, a `vmlinux` or `bzImage`, open for reading. Either this, or `snapshot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<RawFd>,
    /// What the machine goes on from instead of booting a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotFds>,
    /// The initramfs, open for reading.
    pub initramfs: Option<RawFd>,
    /// The root disk.
    pub disk: Option<DiskFds>,
    /// The sandbox's lock, held by this process alone until it ends.
    pub lock: Option<RawFd>,
    /// A listening Unix stream socket for control.
    pub control: RawFd,
    /// A listening Unix stream socket for connections to the guest's vsock ports.
    pub vsock: RawFd,
    /// A Unix stream socket: the guest's first connection to the host's port 1024 is joined to it.
    pub ready: RawFd,
    /// `exit.json`, empty, open for writing.
    pub exit: Option<RawFd>,
    /// One end of a pair of Unix stream sockets: the machine ends when the other end is closed, as it is when its owner dies.
    pub owner: Option<RawFd>,
    /// The ports of the host that are published; at most [`MAX_PORTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortFds>,
}

/// A saved machine: see [`crate::snapshot`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotFds {
    /// The snapshot, open for reading, and where it is not shared for writing: it is marked as used then before the vCPUs run. One
    /// with that mark is refused. It must not become shorter for as long as the machine lives.
    pub file: RawFd,
    /// What it was taken over, where that is another snapshot: see [`Summary::has_base`](crate::snapshot::Summary::has_base). Open for
    /// reading; it is never written, and must not become shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<RawFd>,
    /// Whether other machines go on from it as well, each with a diff of its own over the snapshot's: it stays as it is.
    pub shared: bool,
    /// Which pages a machine of this snapshot writes to at first, as [`Request::Touched`](crate::control::Request::Touched) tells them,
    /// open for reading: they are copied before the vCPUs run. A file of another form is passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub touched: Option<RawFd>,
}

/// A port of the host that is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortFds {
    /// A TCP socket that listens, or a UDP socket that is bound.
    pub listener: RawFd,
    /// Where its clients go.
    pub target: Target,
}

/// By which protocol the clients of a published port speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection each.
    Tcp,
    /// Datagrams, by the address that they come from.
    Udp,
}

/// Where the clients of a published port go.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// A vsock port of the guest.
    pub port: u32,
    /// What the guest gets before what a client sends; at most [`MAX_PREFACE`] bytes.
    pub preface: Vec<u8>,
}

/// A disk: what is not in the diff is read from the lower diff, and what is not there either from the base.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskFds {
    /// An ext4 file system, open for reading. Its length is the disk's.
    pub base: RawFd,
    /// A diff of the same base, open for reading, which is never written: that of the snapshot that the machine goes on from. It must
    /// not change for as long as the machine lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<RawFd>,
    /// The diff, empty or as an earlier machine has left it, open for reading and writing.
    pub diff: RawFd,
}

/// A number of vCPUs, 1 to 32.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(try_from = "u8", into = "u8")]
pub struct Cpus(u8);

/// An amount of guest RAM in MiB, at least 128.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemoryMib(u32);

/// A number that no machine can have.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Too few or too many vCPUs.
    #[error("cpus: {0} is not between 1 and {max}", max = Cpus::MAX)]
    Cpus(u64),
    /// Too little memory, or more than can be addressed.
    #[error("memory: {0} MiB is not between {min} and {max} MiB", min = MemoryMib::MIN, max = MemoryMib::MAX)]
    Memory(u64),
}

impl Cpus {
    /// The largest number.
    pub const MAX: u8 = 32;

    /// The number, for use.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Cpus {
    type Error = SpecError;

    fn try_from(count: u8) -> Result<Self, SpecError> {
        if (1..=Self::MAX).contains(&count) { Ok(Self(count)) } else { Err(SpecError::Cpus(count.into())) }
    }
}

impl From<Cpus> for u8 {
    fn from(cpus: Cpus) -> Self {
        cpus.0
    }
}

impl MemoryMib {
    /// The least that a guest boots with.
    pub const MIN: u32 = 128;
    /// 4 TiB: what a CPU with 42 physical address bits or more can address.
    pub const MAX: u32 = 4 << 20;

    /// In bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl TryFrom<u32> for MemoryMib {
    type Error = SpecError;

    fn try_from(mib: u32) -> Result<Self, SpecError> {
        if (Self::MIN..=Self::MAX).contains(&mib) {
            Ok(Self(mib))
        } else {
            Err(SpecError::Memory(mib.into()))
        }
    }
}

impl From<MemoryMib> for u32 {
    fn from(memory: MemoryMib) -> Self {
        memory.0
    }
}

impl Default for Cpus {
    /// One.
    fn default() -> Self {
        Self(1)
    }
}

impl Default for MemoryMib {
    /// 1 GiB.
    fn default() -> Self {
        Self(1024)
    }
}

impl MachineSpec {
    /// How long the agent may take to come up.
    pub fn boot_timeout(&self) -> Duration {
        Duration::from_millis(self.boot_timeout_ms)
    }

    /// How long the machine may run.
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl_ms.map(Duration::from_millis)
    }

    /// How long it may run without anybody who has a stream to it.
    pub fn idle(&self) -> Option<Duration> {
        self.idle_ms.map(Duration::from_millis)
    }
}
