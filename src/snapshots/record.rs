//! `snapshot.json`: what a snapshot is of, and what it needs. The store's garbage collection reads `image`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rootfs_builder::image::{Digest, ImageConfig};
use serde::{Deserialize, Serialize};
use vmm::spec::{Cpus, MemoryMib};

use crate::sandbox;

const VERSION: u32 = 1;

/// What is known of a snapshot beside what is in its machine.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// The derivation of the image whose file system is under its disk.
    pub(crate) image: Digest,
    /// What the image was called.
    pub(crate) image_name: String,
    /// What the image says of running it.
    pub(crate) config: ImageConfig,
    /// Bytes of the disk.
    pub(crate) disk_bytes: u64,
    /// What the guest's kernel was booted from.
    pub(crate) kernel: std::path::PathBuf,
    pub(crate) cpus: Cpus,
    pub(crate) memory_mib: MemoryMib,
    /// Whether the machine has a network device.
    pub(crate) network: bool,
    /// The name of the sandbox that it was taken of.
    pub(crate) sandbox: String,
    /// The release that has taken it.
    pub(crate) release: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// Milliseconds since 1970.
    pub(crate) created_at_ms: u64,
}

/// A record that is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("it is damaged")]
    Json(#[from] serde_json::Error),
    #[error("it is of version {0}, and this voidrun knows {VERSION}: take the snapshot anew")]
    Version(u32),
}

impl Record {
    /// Of a sandbox as it is now. Whether there is a network device is for its machine to say.
    pub(crate) fn of(sandbox: &sandbox::Record, labels: BTreeMap<String, String>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            image: sandbox.image,
            image_name: sandbox.image_name.clone(),
            config: sandbox.config.clone(),
            disk_bytes: sandbox.disk_bytes,
            kernel: sandbox.kernel.clone(),
            cpus: sandbox.cpus,
            memory_mib: sandbox.memory_mib,
            network: false,
            sandbox: sandbox.name.clone(),
            release: crate::version().to_owned(),
            labels,
            created_at_ms: now.as_millis() as u64,
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
