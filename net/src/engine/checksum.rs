//! The checksum of the Internet protocols (RFC 1071).

use std::net::IpAddr;

/// Adds `data`, which is padded to an even length, to `sum`. Of less than 2^32 bytes nothing is lost.
pub(super) fn add(mut sum: u64, data: &[u8]) -> u64 {
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// The sum in 16 bits, with the carries added; its complement is the checksum.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) of a packet with `len` bytes behind its IP header.
pub(super) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => add(add(0, &source.octets()), &destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => add(add(0, &source.octets()), &destination.octets()),
        _ => 0,
    };
    addresses + u64::from(protocol) + len as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_of_rfc_1071() {
        // Section 3's example.
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(fold(add(0, &[0x12])), 0x1200, "an odd byte is the upper one");
        assert_eq!(fold(add(0, &vec![0xff; 65535])), 0xff00);
    }
}
