//! What a guest is told of itself: at boot, and after a restore if it is another one then.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// `/config.json` beside `/init` in the initramfs, and part of [`crate::Request::Reseed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// The guest's host name, also in its /etc/hosts.
    pub hostname: String,
    /// What its programs know it by, /etc/machine-id: 32 lower-case hexadecimal digits (machine-id(5)). With none the image's own
    /// file stays.
    pub machine_id: Option<String>,
    /// The block device with the root file system (ext4, mounted read-write).
    pub root_device: String,
    /// The interface eth0; none: there is none, or the agent leaves it alone.
    pub network: Option<NetworkConfig>,
    /// Addresses of name servers for /etc/resolv.conf; with none the image's own file stays.
    pub nameservers: Vec<String>,
    /// Domains for the same file, in which names without a dot are looked for.
    pub search: Vec<String>,
    /// More names for /etc/hosts.
    pub hosts: BTreeMap<String, IpAddr>,
    /// Authorities, in PEM, that programs are to trust beside the image's: the file [`CA_CERTIFICATES`].
    pub ca_certificates: Option<String>,
}

/// A guest's file with the image's authorities and those of [`Config::ca_certificates`]; without these it is not there.
pub const CA_CERTIFICATES: &str = "/run/voidrun/ca-certificates.crt";

/// How eth0 is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Its address.
    pub address: Ipv4Addr,
    /// The length of the address's prefix, in bits.
    pub prefix: u8,
    /// Where everything else goes.
    pub gateway: Ipv4Addr,
    /// The same by IPv6; without it eth0 has none, no link-local address either.
    pub ipv6: Option<Network6Config>,
    /// eth0's hardware address, a unicast one; without it eth0 keeps the one that it has, at boot the device's own.
    pub mac: Option<[u8; 6]>,
    /// The longest packet, in bytes.
    pub mtu: u16,
}

/// How eth0 is set up for IPv6: see [`NetworkConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network6Config {
    /// Its address.
    pub address: Ipv6Addr,
    /// The length of the address's prefix, in bits.
    pub prefix: u8,
    /// Where everything else goes.
    pub gateway: Ipv6Addr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hostname: "voidrun".to_owned(),
            machine_id: None,
            root_device: "/dev/vda".to_owned(),
            network: None,
            nameservers: Vec::new(),
            search: Vec::new(),
            hosts: BTreeMap::new(),
            ca_certificates: None,
        }
    }
}
