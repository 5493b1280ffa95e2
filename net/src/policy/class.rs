//! Addresses that are not everybody's: closed unless a rule names them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::block::Block;

/// A block of addresses that is closed.
#[derive(Debug)]
pub(super) struct Class {
    block: Block,
    name: &'static str,
    /// Whether a rule can open it.
    pub(super) openable: bool,
}

const fn openable(name: &'static str, block: Block) -> Class {
    Class { block, name, openable: true }
}

const fn never(name: &'static str, block: Block) -> Class {
    Class { block, name, openable: false }
}

/// What IANA's registries of special-purpose addresses hold, and where providers keep their machines' credentials. The first that has an
/// address decides, so that small blocks stand before the larger ones around them.
#[rustfmt::skip]
const V4: &[Class] = &[
    openable("metadata service", Block::v4(169, 254, 169, 254, 32)), // of most providers
    openable("metadata service", Block::v4(169, 254, 170, 2, 32)),   // Amazon, containers
    openable("metadata service", Block::v4(169, 254, 170, 23, 32)),  // Amazon, Kubernetes
    openable("metadata service", Block::v4(100, 100, 100, 200, 32)), // Alibaba
    openable("metadata service", Block::v4(168, 63, 129, 16, 32)),   // Azure; among addresses that are public otherwise
    never("this network", Block::v4(0, 0, 0, 0, 8)),
    openable("private address", Block::v4(10, 0, 0, 0, 8)),
    openable("shared address of a provider", Block::v4(100, 64, 0, 0, 10)),
    never("loopback", Block::v4(127, 0, 0, 0, 8)),
    openable("link-local address", Block::v4(169, 254, 0, 0, 16)),
    openable("private address", Block::v4(172, 16, 0, 0, 12)),
    never("the gateway's own network", Block::v4(192, 0, 0, 0, 24)), // crate::address::GATEWAY
    openable("documentation", Block::v4(192, 0, 2, 0, 24)),
    never("relays to IPv6", Block::v4(192, 88, 99, 0, 24)),
    openable("private address", Block::v4(192, 168, 0, 0, 16)),
    openable("benchmarking", Block::v4(198, 18, 0, 0, 15)),
    openable("documentation", Block::v4(198, 51, 100, 0, 24)),
    openable("documentation", Block::v4(203, 0, 113, 0, 24)),
    never("multicast", Block::v4(224, 0, 0, 0, 4)),
    never("broadcast", Block::v4(255, 255, 255, 255, 32)),
    openable("reserved address", Block::v4(240, 0, 0, 0, 4)),
];

/// NAT64 (RFC 6052): not closed by itself, since it is how a host without IPv4 reaches the Internet. The IPv4 address inside decides.
const NAT64: Block = Block::v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

/// Of IPv6 only 2000::/3 is in use for what everybody reaches.
const GLOBAL: Block = Block::v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// See [`V4`]. What carries an IPv4 address inside, but for [`NAT64`], is closed for good: nothing public is reached by it.
#[rustfmt::skip]
const V6: &[Class] = &[
    openable("metadata service", Block::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128)), // Amazon
    openable("metadata service", Block::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128)),  // Amazon, Kubernetes
    openable("metadata service", Block::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128)),  // Google
    never("the gateway's own network", Block::v6([0xfd76, 0x6f69, 0x6472, 0, 0, 0, 0, 0], 64)), // crate::address::GATEWAY6
    never("unspecified address", Block::v6([0, 0, 0, 0, 0, 0, 0, 0], 128)),
    never("loopback", Block::v6([0, 0, 0, 0, 0, 0, 0, 1], 128)),
    never("IPv4-compatible address", Block::v6([0, 0, 0, 0, 0, 0, 0, 0], 96)),
    never("IPv4-mapped address", Block::v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96)),
    never("IPv4-translated address", Block::v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96)),
    never("NAT64 of a provider", Block::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48)),
    never("Teredo", Block::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32)),
    openable("protocol assignment", Block::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23)),
    openable("documentation", Block::v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32)),
    never("6to4", Block::v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16)),
    openable("documentation", Block::v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20)),
    openable("unique local address", Block::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7)),
    openable("link-local address", Block::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)),
    openable("site-local address", Block::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10)),
    never("multicast", Block::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8)),
];
const RESERVED6: Class = never("address outside of 2000::/3", Block::v6([0, 0, 0, 0, 0, 0, 0, 0], 0));

/// The class that closes `address`.
pub(super) fn of(address: IpAddr) -> Option<&'static Class> {
    if let Some(inner) = embedded(address) {
        return of(inner.into());
    }
    let table = if address.is_ipv4() { V4 } else { V6 };
    let found = table.iter().find(|class| class.block.contains(address));
    let reserved = address.is_ipv6() && !GLOBAL.contains(address);
    found.or(reserved.then_some(&RESERVED6))
}

/// The IPv4 address that a NAT64 makes of `address`.
pub(crate) fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V6(v6) if NAT64.contains(address) => Some(Ipv4Addr::from_bits(v6.to_bits() as u32)),
        _ => None,
    }
}

impl Class {
    /// Whether a rule for `block` opens what this closes: it has to lie in this class, so that 0.0.0.0/0 opens nothing by accident, and
    /// 169.254.0.0/16 not the metadata service, which is a class of its own. Addresses with an IPv4 address inside are not opened: the
    /// rule that would open them says nothing of whose they are.
    pub(super) fn opened_by(&self, block: &Block) -> bool {
        self.openable && self.block.holds(block)
    }
}

/// The class of all of `block` if no rule can open that.
pub(super) fn never_opened(block: &Block) -> Option<&'static Class> {
    of(block.first()).filter(|class| !class.openable && class.block.holds(block))
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.block)
    }
}
