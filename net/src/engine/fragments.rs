//! Datagrams that the guest sends in pieces (IPv4: RFC 791, section 3.2).

use std::collections::VecDeque;

use smoltcp::wire::{IpProtocol, Ipv4Packet};

use super::packet::Packet;

/// Datagrams of which pieces may be missing: 64 KiB each, at most.
const DATAGRAMS: usize = 8;

/// Pieces that have come so far. There is one way from the guest, on which nothing overtakes: a piece that is not the next one is
/// of a datagram that is lost, and nothing can lie over anything.
#[derive(Default)]
pub(super) struct Fragments {
    begun: VecDeque<Begun>,
}

struct Begun {
    identification: u16,
    /// From the IP header on.
    packet: Vec<u8>,
}

impl Begun {
    fn header(&self) -> usize {
        usize::from(self.packet[0] & 0xf) * 4
    }

    /// Whether `piece` is of the same datagram, which its addresses, protocol and identification say.
    fn is_of(&self, piece: &Ipv4Packet<&[u8]>) -> bool {
        let begun = Ipv4Packet::new_unchecked(&self.packet[..]);
        self.identification == piece.ident()
            && (begun.src_addr(), begun.dst_addr()) == (piece.src_addr(), piece.dst_addr())
            && begun.next_header() == piece.next_header()
    }
}

impl Fragments {
    /// Takes a piece. The whole packet, if it was the last.
    pub(super) fn add(&mut self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        // TCP has no need to.
        if packet.protocol == IpProtocol::Tcp {
            return None;
        }
        let piece = Ipv4Packet::new_checked(packet.bytes).ok()?;
        let known = self.begun.iter().position(|begun| begun.is_of(&piece));
        let mut begun = match (piece.frag_offset(), known.and_then(|at| self.begun.remove(at))) {
            (0, _) => Begun { identification: piece.ident(), packet: packet.bytes.to_vec() },
            (offset, Some(mut begun)) => {
                let len = begun.packet.len() + packet.payload.len();
                if usize::from(offset) != begun.packet.len() - begun.header() || len > usize::from(u16::MAX) {
                    return None;
                }
                begun.packet.extend_from_slice(packet.payload);
                begun
            }
            (_, None) => return None,
        };
        if piece.more_frags() {
            if self.begun.len() >= DATAGRAMS {
                self.begun.pop_front();
            }
            self.begun.push_back(begun);
            return None;
        }
        let len = begun.packet.len() as u16;
        let mut whole = Ipv4Packet::new_unchecked(&mut begun.packet[..]);
        whole.set_total_len(len);
        whole.set_more_frags(false);
        whole.set_frag_offset(0);
        Some(begun.packet)
    }
}
