//! Datagrams that the guest sends in pieces (IPv4: RFC 791, section 3.2; IPv6: RFC 8200, section 4.5).

use std::collections::VecDeque;
use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use super::packet::{FRAGMENT6, IPV6, Packet};

/// Datagrams of which pieces may be missing: 64 KiB each, at most.
const DATAGRAMS: usize = 8;

/// Pieces that have come so far. There is one way from the guest, on which nothing overtakes: a piece that is not the next one is
/// of a datagram that is lost, and nothing can lie over anything.
#[derive(Default)]
pub(super) struct Fragments {
    begun: VecDeque<Begun>,
}

/// What all pieces of a datagram have in common, and no others.
#[derive(PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    identification: u32,
}

struct Begun {
    key: Key,
    header: usize,
    /// From the IP header on.
    packet: Vec<u8>,
}

/// A packet that is a part of one.
struct Piece<'a> {
    key: Key,
    offset: usize,
    more: bool,
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Piece<'a> {
    fn read(packet: &Packet<'a>) -> Option<Self> {
        let Packet { source, destination, .. } = *packet;
        if source.is_ipv4() {
            let piece = Ipv4Packet::new_checked(packet.bytes).ok()?;
            let identification = piece.ident().into();
            return Some(Self {
                key: Key { source, destination, protocol: packet.protocol, identification },
                offset: piece.frag_offset().into(),
                more: piece.more_frags(),
                header: &packet.bytes[..packet.bytes.len() - packet.payload.len()],
                payload: packet.payload,
            });
        }
        let (&[protocol, _, high, low, identification @ ..], payload) =
            packet.payload.split_first_chunk::<FRAGMENT6>()?;
        let identification = u32::from_be_bytes(identification);
        let offset = u16::from_be_bytes([high, low]);
        Some(Self {
            key: Key { source, destination, protocol: protocol.into(), identification },
            offset: (offset & !7).into(),
            more: offset & 1 != 0,
            header: &packet.bytes[..IPV6],
            payload,
        })
    }
}

impl Fragments {
    /// Takes a piece. The whole packet, if it was the last.
    pub(super) fn add(&mut self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let piece = Piece::read(packet)?;
        // It has no need to.
        if piece.key.protocol == IpProtocol::Tcp {
            return None;
        }
        let known = self.begun.iter().position(|begun| begun.key == piece.key);
        let mut begun = match (piece.offset, known.and_then(|at| self.begun.remove(at))) {
            (0, _) => {
                let packet = [piece.header, piece.payload].concat();
                Begun { key: piece.key, header: piece.header.len(), packet }
            }
            (offset, Some(mut begun)) => {
                let len = begun.packet.len() + piece.payload.len();
                if offset != begun.packet.len() - begun.header || len > usize::from(u16::MAX) {
                    return None;
                }
                begun.packet.extend_from_slice(piece.payload);
                begun
            }
            (_, None) => return None,
        };
        if piece.more {
            if self.begun.len() >= DATAGRAMS {
                self.begun.pop_front();
            }
            self.begun.push_back(begun);
            return None;
        }
        let len = begun.packet.len();
        if begun.key.source.is_ipv4() {
            let mut whole = Ipv4Packet::new_unchecked(&mut begun.packet[..]);
            whole.set_total_len(len as u16);
            whole.set_more_frags(false);
            whole.set_frag_offset(0);
        } else {
            let mut whole = Ipv6Packet::new_unchecked(&mut begun.packet[..]);
            whole.set_payload_len((len - IPV6) as u16);
            whole.set_next_header(begun.key.protocol);
        }
        Some(begun.packet)
    }
}
