//! IP packets as they are read from the guest and made for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket,
    TcpRepr, UdpPacket, UdpRepr,
};

use super::checksum;

/// The length of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// The length of an IPv6 header, and of the one that a piece has behind it.
pub(super) const IPV6: usize = 40;
pub(super) const FRAGMENT6: usize = 8;
/// Hops that what the gateway sends may take.
pub(super) const HOP_LIMIT: u8 = 64;

/// An IP packet of the guest, whole and consistent in its lengths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// From the IP header on, without what may lie behind the packet.
    pub(super) bytes: &'a [u8],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: IpProtocol,
    pub(super) payload: &'a [u8],
    /// It is a part of a packet.
    pub(super) fragment: bool,
}

impl<'a> Packet<'a> {
    /// Reads `bytes`, the payload of an Ethernet frame.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let packet = Ipv4Packet::new_checked(bytes).ok()?;
                Some(Self {
                    bytes: &bytes[..usize::from(packet.total_len())],
                    source: packet.src_addr().into(),
                    destination: packet.dst_addr().into(),
                    protocol: packet.next_header(),
                    payload: packet.payload(),
                    fragment: packet.more_frags() || packet.frag_offset() != 0,
                })
            }
            6 => {
                let packet = Ipv6Packet::new_checked(bytes).ok()?;
                Some(Self {
                    bytes: &bytes[..packet.total_len()],
                    source: packet.src_addr().into(),
                    destination: packet.dst_addr().into(),
                    protocol: packet.next_header(),
                    payload: packet.payload(),
                    fragment: packet.next_header() == IpProtocol::Ipv6Frag,
                })
            }
            _ => None,
        }
    }
}

/// The header of an IP packet with `len` bytes of payload.
fn ip_header(source: IpAddr, destination: IpAddr, protocol: IpProtocol, len: usize) -> Option<IpRepr> {
    Some(match (source, destination) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => IpRepr::Ipv4(Ipv4Repr {
            src_addr,
            dst_addr,
            next_header: protocol,
            payload_len: len,
            hop_limit: HOP_LIMIT,
        }),
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => IpRepr::Ipv6(Ipv6Repr {
            src_addr,
            dst_addr,
            next_header: protocol,
            payload_len: len,
            hop_limit: HOP_LIMIT,
        }),
        _ => return None,
    })
}

/// A UDP datagram.
pub(super) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let repr = UdpRepr { src_port: source.port(), dst_port: destination.port() };
    let ip = ip_header(source.ip(), destination.ip(), IpProtocol::Udp, repr.header_len() + payload.len())?;
    let mut packet = vec![0; ip.buffer_len()];
    let capabilities = ChecksumCapabilities::default();
    ip.emit(&mut packet, &capabilities);
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut packet[ip.header_len()..]),
        &source.ip().into(),
        &destination.ip().into(),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &capabilities,
    );
    Some(packet)
}

/// Refuses the TCP segment in `packet` (RFC 9293, section 3.10.7.1). A reset is not answered.
pub(super) fn reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let segment = TcpPacket::new_checked(packet.payload).ok()?;
    if segment.rst() {
        return None;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        (smoltcp::wire::TcpSeqNumber(0), Some(segment.seq_number() + segment.segment_len()))
    };
    let repr = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = ip_header(packet.destination, packet.source, IpProtocol::Tcp, repr.buffer_len())?;
    let mut answer = vec![0; ip.buffer_len()];
    let capabilities = ChecksumCapabilities::default();
    ip.emit(&mut answer, &capabilities);
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut answer[ip.header_len()..]),
        &IpAddress::from(packet.destination),
        &IpAddress::from(packet.source),
        &capabilities,
    );
    Some(answer)
}

/// An ICMP message whose checksum is still to be computed.
pub(super) fn icmp(source: IpAddr, destination: IpAddr, message: &[u8]) -> Option<Vec<u8>> {
    let protocol = if source.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    let ip = ip_header(source, destination, protocol, message.len())?;
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    let start = ip.header_len();
    packet[start..].copy_from_slice(message);
    packet[start + 2..start + 4].fill(0);
    let sum = match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum::pseudo(source.into(), destination.into(), IpProtocol::Icmpv6.into(), message.len())
        }
        _ => 0,
    };
    let sum = checksum::fold(checksum::add(sum, &packet[start..]));
    packet[start + 2..start + 4].copy_from_slice(&(!sum).to_be_bytes());
    Some(packet)
}

/// Why a packet did not reach its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// No way to its network: ENETUNREACH in the guest.
    Network,
    /// Nobody answers at its address: EHOSTUNREACH.
    Host,
    /// Nobody listens on its port: ECONNREFUSED.
    Port,
    /// It was denied: EHOSTUNREACH by IPv4, which has no better one, and EACCES by IPv6.
    Prohibited,
}

/// Tells the guest that `packet` has gone nowhere (RFC 792; RFC 4443, section 3.1). As much of it is quoted as the smallest MTU
/// takes.
pub(super) fn unreachable(packet: &Packet<'_>, why: Unreachable) -> Option<Vec<u8>> {
    let (kind, code, most) = match (packet.source, why) {
        (IpAddr::V4(_), Unreachable::Network) => (3, 0, 576),
        (IpAddr::V4(_), Unreachable::Host) => (3, 1, 576),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3, 576),
        (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13, 576),
        (IpAddr::V6(_), Unreachable::Network) => (1, 0, 1280),
        (IpAddr::V6(_), Unreachable::Host) => (1, 3, 1280),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4, 1280),
        (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1, 1280),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(&packet.bytes[..packet.bytes.len().min(most - 40 - 8)]);
    icmp(packet.destination, packet.source, &message)
}

/// Cuts a packet that is longer than `mtu` (RFC 791, section 3.2; RFC 8200, section 4.5); `identification`, of which IPv4 has the lower
/// half, is to be another one for each packet.
pub(super) fn fragments(packet: &[u8], mtu: usize, identification: u32) -> Vec<Vec<u8>> {
    let v6 = packet[0] >> 4 == 6;
    let header = if v6 { IPV6 } else { usize::from(packet[0] & 0xf) * 4 };
    let piece = (mtu - header - if v6 { FRAGMENT6 } else { 0 }) / 8 * 8;
    let payload = &packet[header..];
    let mut fragments = Vec::new();
    for (index, part) in payload.chunks(piece).enumerate() {
        let offset = (index * piece) as u16;
        let more = (index + 1) * piece < payload.len();
        let mut fragment = packet[..header].to_vec();
        if v6 {
            let mut ip = Ipv6Packet::new_unchecked(&mut fragment[..]);
            let protocol = ip.next_header().into();
            ip.set_next_header(IpProtocol::Ipv6Frag);
            ip.set_payload_len((FRAGMENT6 + part.len()) as u16);
            fragment.extend([protocol, 0]);
            fragment.extend((offset | u16::from(more)).to_be_bytes());
            fragment.extend(identification.to_be_bytes());
            fragment.extend_from_slice(part);
        } else {
            fragment.extend_from_slice(part);
            let mut ip = Ipv4Packet::new_unchecked(&mut fragment[..]);
            ip.set_total_len((header + part.len()) as u16);
            ip.set_ident(identification as u16);
            ip.set_dont_frag(false);
            ip.set_more_frags(more);
            ip.set_frag_offset(offset);
            ip.fill_checksum();
        }
        fragments.push(fragment);
    }
    fragments
}

/// Whether somebody in particular has this address, by its form.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_multicast()
                && address != Ipv4Addr::BROADCAST
                && address != crate::address::BROADCAST
                && !address.is_unspecified()
        }
        IpAddr::V6(address) => !address.is_multicast() && address != Ipv6Addr::UNSPECIFIED,
    }
}
