//! Blocks of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address with all that begin with the same `prefix` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no block.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum BlockError {
    #[error("not an address")]
    Address,
    #[error("the prefix length {0:?}: expected a number up to {1}")]
    Prefix(String, u8),
    #[error("an address inside a block: for the block write {0}, for the address {1}")]
    Inside(Block, IpAddr),
}

impl Block {
    /// A block of IPv4 that is known to be one.
    pub(super) const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    /// The same of IPv6.
    pub(super) const fn v6(groups: [u16; 8], prefix: u8) -> Self {
        Self { address: IpAddr::V6(Ipv6Addr::from_segments(groups)), prefix }
    }

    /// Whether `address` is in it.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && self.address == masked(address, self.prefix)
    }

    /// Whether all of `other` is in it.
    pub(super) fn holds(&self, other: &Self) -> bool {
        other.prefix >= self.prefix && self.contains(other.address)
    }

    /// Whether it is `address` alone.
    pub(super) fn is(&self, address: IpAddr) -> bool {
        *self == Self::from(address)
    }

    /// Its first address.
    pub(super) fn first(&self) -> IpAddr {
        self.address
    }

    pub(super) fn is_v6(&self) -> bool {
        self.address.is_ipv6()
    }
}

/// `address` with all bits behind the first `prefix` cleared.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl From<IpAddr> for Block {
    fn from(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self, BlockError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BlockError::Address)?;
        let whole = Self::from(address);
        let Some(length) = length else { return Ok(whole) };
        let digits = Some(length).filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()));
        let prefix = digits.and_then(|digits| digits.parse().ok()).filter(|prefix| *prefix <= whole.prefix);
        let prefix = prefix.ok_or_else(|| BlockError::Prefix(length.to_owned(), whole.prefix))?;
        let block = Self { address: masked(address, prefix), prefix };
        if block.address != address {
            return Err(BlockError::Inside(block, address));
        }
        Ok(block)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == Self::from(self.address).prefix {
            return write!(f, "{}", self.address);
        }
        write!(f, "{}/{}", self.address, self.prefix)
    }
}
