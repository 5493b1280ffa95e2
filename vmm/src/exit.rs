//! Why a machine has ended.

use serde::{Deserialize, Serialize};

use crate::control::NetworkMetrics;

/// The end of a machine, as it is written to `exit.json` and told on the control socket.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The last lines of the serial console: what the guest's kernel has said. At most 8 KiB.
    pub console: String,
    /// What its network has done; none where it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMetrics>,
}

/// Why a machine has ended.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, thiserror::Error)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ExitReason {
    /// The guest has powered off (ACPI S5).
    #[error("the guest has shut down")]
    Shutdown,
    /// The guest has reset the machine (i8042) without a panic.
    #[error("the guest has reset the machine")]
    Reset,
    /// A vCPU has met a triple fault.
    #[error("the guest has crashed: triple fault on vCPU {vcpu}")]
    #[serde(rename_all = "camelCase")]
    TripleFault {
        /// Which one.
        vcpu: u32,
    },
    /// The guest's kernel has panicked.
    #[error("the guest's kernel has panicked: {message}")]
    #[serde(rename_all = "camelCase")]
    KernelPanic {
        /// The line of the console that says so.
        message: String,
    },
    /// The agent has not come up in time.
    #[error("the guest has not come up within {seconds} s")]
    #[serde(rename_all = "camelCase")]
    BootTimeout {
        /// The deadline.
        seconds: u64,
    },
    /// Whoever runs the machine has ended it.
    #[error("the machine was killed")]
    Killed,
    /// Its time to live is over.
    #[error("the machine has reached its time to live of {seconds} s")]
    #[serde(rename_all = "camelCase")]
    Ttl {
        /// The limit.
        seconds: u64,
    },
    /// Nobody has had a stream to the guest for too long.
    #[error("the machine has been idle for {seconds} s")]
    #[serde(rename_all = "camelCase")]
    Idle {
        /// The limit.
        seconds: u64,
    },
    /// The machine could not be started, or the host failed later.
    #[error("{message}")]
    #[serde(rename_all = "camelCase")]
    Failed {
        /// What failed, on what, and why.
        message: String,
    },
}
