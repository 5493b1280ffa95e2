//! The addresses on a guest's wire. Each guest has a wire of its own, with nobody else on it, so that all have the same ones.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The guest's address. Of 192.0.0.0/29, which is reserved for the inside of such translations (RFC 7335) and hides no network that a
/// user may want to reach.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// The gateway's, and the name server's.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// The length of both addresses' prefix.
pub const PREFIX: u8 = 30;
/// Everybody on the wire.
pub const BROADCAST: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 3);

/// The guest's address where the host has IPv6: a unique local one (RFC 4193).
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6f69, 0x6472, 0, 0, 0, 0, 2);
/// The gateway's.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6f69, 0x6472, 0, 0, 0, 0, 1);
/// The length of both addresses' prefix.
pub const PREFIX6: u8 = 64;

/// A hardware address.
pub type Mac = [u8; 6];
/// The guest's; locally administered.
pub const GUEST_MAC: Mac = [0x02, 0x76, 0x6f, 0x69, 0x64, 0x02];
/// The gateway's.
pub const GATEWAY_MAC: Mac = [0x02, 0x76, 0x6f, 0x69, 0x64, 0x01];

/// Bytes of an IP packet on the wire, but for those that the receiver is to cut ([`crate::wire::Gso`]).
pub const MTU: u16 = 1500;
