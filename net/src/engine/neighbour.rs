//! The gateway as the guest's neighbour: ARP (RFC 826) and neighbour discovery (RFC 4861).

use std::net::IpAddr;

use super::link::Link;
use super::packet::{self, Packet};
use crate::address::{GATEWAY, GATEWAY_MAC, GATEWAY6};

/// An ARP packet of IPv4 over Ethernet, up to the operation.
const HEAD: [u8; 7] = [0, 1, 8, 0, 6, 4, 0];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// Answers the ARP packet `payload`, where it asks for the gateway.
pub(super) fn arp(payload: &[u8], link: &mut Link) -> Option<()> {
    let request = payload.first_chunk::<28>()?;
    // Whoever asks is behind the operation: hardware address, then address; then whom it asks for.
    if request[..7] != HEAD || request[7] != REQUEST || request[24..] != GATEWAY.octets() {
        return None;
    }
    let mut reply = Vec::with_capacity(28);
    reply.extend(HEAD);
    reply.push(REPLY);
    reply.extend(GATEWAY_MAC);
    reply.extend(GATEWAY.octets());
    reply.extend(&request[8..18]);
    link.arp(&reply).then_some(())
}

/// Answers a neighbour solicitation for the gateway. Router solicitations get no answer: the guest is told its addresses otherwise.
pub(super) fn solicitation(packet: &Packet<'_>, link: &mut Link) -> Option<()> {
    let IpAddr::V6(source) = packet.source else { return None };
    let message = packet.payload;
    // RFC 4861, sections 4.3 and 7.1.1.
    if message.len() < 24 || message[0] != 135 || message[8..24] != GATEWAY6.octets() {
        return None;
    }
    // A source of :: looks for its own address elsewhere, and the gateway's is taken: the answer goes to all nodes.
    let unspecified = source.is_unspecified();
    let destination = if unspecified { std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1) } else { source };
    let mut answer = vec![136, 0, 0, 0];
    // Router, solicited, override.
    answer.extend([if unspecified { 0xa0 } else { 0xe0 }, 0, 0, 0]);
    answer.extend(GATEWAY6.octets());
    // Section 4.6.1: the target's link-layer address, in units of eight bytes.
    answer.extend([2, 1]);
    answer.extend(GATEWAY_MAC);
    let mut answer = packet::icmp(GATEWAY6.into(), destination.into(), &answer)?;
    // Section 7.1.2: it has crossed no router.
    answer[7] = 255;
    link.packet(&answer).then_some(())
}
