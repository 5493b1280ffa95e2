//! What is answered without asking anybody: names that the user has given an address, and addresses that are nobody's business outside.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name;

/// Names with an address that the user has given them.
#[derive(Debug)]
pub(super) struct Hosts {
    addresses: BTreeMap<String, IpAddr>,
}

impl Hosts {
    /// Names in any case, with or without a dot at their end. One that is no name is never asked for, and left out.
    pub(super) fn new(hosts: &BTreeMap<String, IpAddr>) -> Self {
        let named = |(name, address): (&String, &IpAddr)| Some((name::parse(name).ok()?, *address));
        Self { addresses: hosts.iter().filter_map(named).collect() }
    }

    /// The address of `name`, which is in lower case.
    pub(super) fn address(&self, name: &str) -> Option<IpAddr> {
        self.addresses.get(name).copied()
    }

    /// The names of `address`.
    pub(super) fn names(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.addresses.iter().filter(move |(_, other)| **other == address).map(|(name, _)| name.as_str())
    }
}

/// The address whose name `name` asks for (RFC 1035, section 3.5, and RFC 3596, section 2.5).
pub(super) fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let forward: Vec<&str> = octets.rsplit('.').collect();
        return forward.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    if nibbles.len() != 63 || !nibbles.split('.').all(|nibble| nibble.len() == 1) {
        return None;
    }
    let forward: String = nibbles.chars().rev().filter(|digit| *digit != '.').collect();
    u128::from_str_radix(&forward, 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
}
