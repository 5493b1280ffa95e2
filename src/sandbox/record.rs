//! `spec.json`: what a sandbox was made of, and what it is called. The store's garbage collection reads `image`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use net::engine::Limits;
use net::policy::{Mode, Policy};
use protocol::{Exec, Exit};
use rootfs_builder::image::{Digest, ImageConfig};
use serde::{Deserialize, Serialize};
use vmm::spec::{Cpus, MemoryMib};

use super::network::Access;
use super::port::Port;

const VERSION: u32 = 1;

/// What is known of a sandbox beside what its machine says.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// The derivation of the image whose file system the sandbox has.
    pub(crate) image: Digest,
    /// What the image was called.
    pub(crate) image_name: String,
    /// What the image says of running it.
    pub(crate) config: ImageConfig,
    /// Bytes of the disk.
    pub(crate) disk_bytes: u64,
    pub(crate) kernel: PathBuf,
    pub(crate) cpus: Cpus,
    pub(crate) memory_mib: MemoryMib,
    /// The snapshot that it was made from, where it was; it need not be there any more.
    #[serde(default)]
    pub(crate) snapshot: Option<String>,
    /// Whether it is nobody's any more once its machine has ended, which ends with its owner.
    pub(crate) ephemeral: bool,
    /// Whether a user has removed it, and only the work is still to be done.
    #[serde(default)]
    pub(crate) removed: bool,
    /// What the user calls it; empty where nobody has given it a name.
    #[serde(default)]
    pub(crate) name: String,
    /// Variables of all its commands, over those of the image.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// What it may reach.
    #[serde(default = "unconnected")]
    pub(crate) network: Policy,
    /// How much of its network it may use.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// Names that its name server answers by itself.
    #[serde(default)]
    pub(crate) hosts: BTreeMap<String, IpAddr>,
    /// Authorities, in PEM, that its programs trust beside the image's.
    #[serde(default)]
    pub(crate) ca_certificates: Option<Arc<str>>,
    /// Its machine ends so many ms after each start.
    #[serde(default)]
    pub(crate) ttl_ms: Option<u64>,
    /// Its machine ends, or is put to sleep, when nobody has had a stream to it for so many ms.
    #[serde(default)]
    pub(crate) idle_ms: Option<u64>,
    /// Whether it is put to sleep then, and wakes when it is asked for something.
    #[serde(default)]
    pub(crate) auto_sleep: bool,
    /// Ports of this machine that lead into the guest.
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
    /// Milliseconds since 1970.
    pub(crate) created_at_ms: u64,
    /// What it is there for, if that is one command.
    #[serde(default)]
    pub(crate) job: Option<Job>,
}

/// The releases without a network have written nothing of it.
fn unconnected() -> Policy {
    Policy::from(Mode::None)
}

/// The command that a sandbox is there for: it starts with the machine, which stops when it has ended.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Job {
    pub(crate) exec: Exec,
    /// Whether the sandbox is removed when it has ended.
    pub(crate) removes: bool,
    /// In the guest, since the machine was started last.
    pub(crate) pid: Option<u32>,
    /// How it ended then.
    pub(crate) exit: Option<Exit>,
}

/// What is to become of a sandbox that nobody runs. Read without the rest of the record, so that the sandboxes of a newer
/// release are not taken for rubbish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It can be started again.
    Keep,
    /// It goes.
    Remove,
}

/// A record that is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it is damaged")]
    Json(#[from] serde_json::Error),
    #[error("it is of version {0}, and this voidrun knows {VERSION}: use the newer one that has written it")]
    Version(u32),
}

impl Record {
    /// What it may reach, and how much of that.
    pub(crate) fn access(&self) -> Access {
        Access { policy: self.network.clone(), limits: self.limits }
    }

    /// Its next machine may reach this.
    pub(crate) fn set_access(&mut self, Access { policy, limits }: Access) {
        (self.network, self.limits) = (policy, limits);
    }

    /// Of a sandbox that is kept, as what it begins with says. The rest is for its maker.
    pub(crate) fn new(
        image: Digest,
        image_name: String,
        config: ImageConfig,
        disk_bytes: u64,
        kernel: PathBuf,
        cpus: Cpus,
        memory_mib: MemoryMib,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            image,
            image_name,
            config,
            disk_bytes,
            kernel,
            cpus,
            memory_mib,
            snapshot: None,
            ephemeral: false,
            removed: false,
            name: String::new(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            network: Policy::default(),
            limits: Limits::default(),
            hosts: BTreeMap::new(),
            ca_certificates: None,
            ttl_ms: None,
            idle_ms: None,
            auto_sleep: false,
            ports: Vec::new(),
            created_at_ms: now.as_millis() as u64,
            job: None,
        }
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        match serde_json::from_slice(json)? {
            Version { version: VERSION } => Ok(serde_json::from_slice(json)?),
            Version { version } => Err(RecordError::Version(version)),
        }
    }
}

impl Fate {
    /// By a record of any version.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Kept {
            ephemeral: bool,
            #[serde(default)]
            removed: bool,
        }
        let Kept { ephemeral, removed } = serde_json::from_slice(json).ok()?;
        Some(if ephemeral || removed { Self::Remove } else { Self::Keep })
    }
}
