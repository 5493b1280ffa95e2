//! What a guest is told at boot.

use serde::{Deserialize, Serialize};

/// `/config.json` beside `/init` in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// The guest's host name, also in its /etc/hosts.
    pub hostname: String,
    /// The block device with the root file system (ext4, mounted read-write).
    pub root_device: String,
    /// Addresses of name servers for /etc/resolv.conf; with none the image's own file stays.
    pub nameservers: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { hostname: "voidrun".to_owned(), root_device: "/dev/vda".to_owned(), nameservers: Vec::new() }
    }
}
