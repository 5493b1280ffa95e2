//! What the daemon refuses, and what fails.

use std::net::SocketAddr;

use net::policy::PolicyError;
use rootfs_builder::pull::PullError;
use rootfs_builder::reference::NameError;
use rootfs_builder::store::StoreError;
use vmm::control::ControlError;
use vmm::devices::block::DiskError;
use vmm::snapshot::SnapshotError;

use super::name::InvalidName;
use super::state::State;
use crate::sandbox::{DirectoryError, ExecError, KernelError, LaunchError, PortError};
use crate::snapshots::SnapshotsError;

/// An operation that was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("there is no sandbox {0}: `voidrun ps --all` lists those there are")]
    NotFound(String),
    /// A prefix of several ids.
    #[error("{prefix} could be any of the sandboxes {}: give more of the id, or the name", ids.join(", "))]
    Ambiguous { prefix: String, ids: Vec<String> },
    #[error(
        "the sandbox {0} has no command of its own, so there is no log: `voidrun run --detach` gives it one"
    )]
    NoJob(String),
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    #[error("the name {name} is that of the sandbox {id}")]
    NameTaken { name: String, id: String },
    /// `action` is what cannot be done, as in "stop".
    #[error("cannot {action} the sandbox {name}: it is {state}")]
    State { action: &'static str, name: String, state: State },
    #[error(
        "there are {0} sandboxes already, which is the limit: remove one, or set limits.sandboxes in the configuration"
    )]
    TooMany(usize),
    #[error(
        "the sandboxes that run have {used} MiB of memory, and {wanted} more would be over the limit of {limit}: stop one, \
         or set limits.memory in the configuration"
    )]
    TooMuchMemory { used: u64, wanted: u64, limit: u64 },
    /// `name` is the sandbox whose port it was to be.
    #[error("cannot publish a port of the sandbox {name}")]
    Port { name: String, source: PortError },
    #[error(
        "{address} is a port of the sandbox {name} already: `voidrun port ls {name}` shows those that it has"
    )]
    PortOf { address: SocketAddr, name: String },
    #[error(
        "the sandbox {name} has no port {port} of this machine: `voidrun port ls {name}` shows those that it has"
    )]
    NoPort { port: u16, name: String },
    #[error("the sandbox {name} has {limit} ports, which is the limit: remove one of them")]
    TooManyPorts { limit: usize, name: String },
    #[error(
        "the sandbox {0} was started without a network, and has no device for one: stop it, change its network, start it"
    )]
    NoNetwork(String),
    /// What a change would make of its network, or a request asks for.
    #[error("network: {0}")]
    Policy(PolicyError),
    #[error("cannot {action} the sandbox {name}: it is sleeping; `voidrun wake {name}` lets it go on")]
    Asleep { action: &'static str, name: String },
    #[error(
        "cannot {action} the sandbox {name}: it goes with the command that it was made for; `voidrun create` makes one that stays"
    )]
    Ephemeral { action: &'static str, name: String },
    #[error(
        "cannot {action} the sandbox {name}; `voidrun stop {name}` gives its memory up, and keeps its disk"
    )]
    Snapshot { action: &'static str, name: String, source: SnapshotError },
    /// `name` is the snapshot's.
    #[error("cannot go on from the snapshot {name}")]
    Restore { name: String, source: SnapshotError },
    /// A snapshot of the sandbox cannot be taken.
    #[error("cannot copy the disk of the sandbox {name}")]
    Disk { name: String, source: DiskError },
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    /// `what` cannot be had of it; what it has.
    #[error("the snapshot {name} is of {has}, and {wanted} is asked for: leave that out")]
    OtherMachine { name: String, has: String, wanted: String },
    #[error(
        "the snapshot {0} is of a machine without a network device: take the network none, or take the snapshot anew"
    )]
    NoNetworkIn(String),
    #[error("there is no terminal {id} in the sandbox {sandbox}, or it has ended")]
    NoTerminal { id: String, sandbox: String },
    #[error("the sandbox {sandbox} has {limit} terminals, which is the limit: end one of them")]
    TooManyTerminals { limit: usize, sandbox: String },
    #[error("{0} clients follow the events already, which is the limit")]
    TooManyFollowers(usize),
    #[error(transparent)]
    ImageName(#[from] NameError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It has another size than what was wanted, and may not be made anew.
    #[error("{0}")]
    ImageSize(String),
    /// `what` is the reference, or the name that it was to get.
    #[error("cannot get the image {what}")]
    Pull { what: String, source: Box<PullError> },
    #[error("there are {0} pulls already, which is the limit: try again when one has ended")]
    TooManyPulls(usize),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot start the sandbox {name} from {image}")]
    Launch { name: String, image: String, source: LaunchError },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// `action` is what the guest was asked for, as in "run a command in".
    #[error("cannot {action} the sandbox {name}")]
    Exec { action: &'static str, name: String, source: ExecError },
    #[error("there is no watch {id} in the sandbox {sandbox}, or somebody follows it already")]
    NoWatch { id: String, sandbox: String },
    #[error(
        "the sandbox {sandbox} has {limit} watches that nobody follows, which is the limit: follow one of them"
    )]
    TooManyWatches { limit: usize, sandbox: String },
    /// Why it has, as [`crate::sandbox::Ending`] tells it.
    #[error("cannot {action} the sandbox {name}: its machine has ended: {reason}")]
    Ended { action: &'static str, name: String, reason: String },
    /// Its machine runs, and this daemon cannot talk to it.
    #[error("the sandbox {name} cannot be reached: {reason}; `voidrun stop` and `voidrun rm --force` end it")]
    Lost { name: String, reason: String },
    #[error("cannot {action} the sandbox {name}: the guest has not answered within {seconds} s")]
    Silent { action: &'static str, name: String, seconds: u64 },
    /// What the process of its machine was asked for.
    #[error("cannot {action} the sandbox {name}")]
    Control { action: &'static str, name: String, source: ControlError },
    /// Something that the host does for a sandbox, as in "lock".
    #[error("cannot {action} the sandbox {name}")]
    Host { action: &'static str, name: String, source: std::io::Error },
    #[error("the daemon is ending")]
    Ending,
}
