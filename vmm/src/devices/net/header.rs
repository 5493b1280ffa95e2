//! The header before each frame (section 5.1.6), from the guest and to it.

use std::num::NonZeroU16;

use net::wire::{Checksum, Gso, Offload};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header: with VERSION_1 `num_buffers` is always there.
pub(super) const HEADER: usize = 12;

/// An Ethernet header: no checksum begins before its end.
const ETHERNET: usize = 14;
/// The least of a TCP header.
const TCP: usize = 20;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;

/// What the driver has accepted, as far as it is about the content of frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted(pub(super) u64);

impl Accepted {
    fn has(self, feature: u32) -> bool {
        self.0 & 1 << feature != 0
    }

    /// What frames to the guest may leave to it. TSO without checksums is not a thing (section 5.1.3.1).
    pub(super) fn for_guest(self) -> net::wire::Features {
        let checksum = self.has(VIRTIO_NET_F_GUEST_CSUM);
        net::wire::Features {
            checksum,
            tso4: checksum && self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && self.has(VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    /// Whether frames of the guest may be segments that are still to be cut.
    fn cuts(self, v6: bool) -> bool {
        let feature = if v6 { VIRTIO_NET_F_HOST_TSO6 } else { VIRTIO_NET_F_HOST_TSO4 };
        self.has(VIRTIO_NET_F_CSUM) && self.has(feature)
    }
}

/// What `header` leaves to be computed in `frame`; none where it makes no sense or was not agreed on.
///
/// The length of the headers is taken from the frame: `hdr_len` is a hint that no device may trust (section 5.1.6.2.2).
pub(super) fn from_guest(header: [u8; HEADER], frame: &[u8], accepted: Accepted) -> Option<Offload> {
    let [flags, gso_type, _, _, size_low, size_high, start_low, start_high, offset_low, offset_high, ..] =
        header;
    let start = u16::from_le_bytes([start_low, start_high]);
    let offset = u16::from_le_bytes([offset_low, offset_high]);
    // Other flags are to be ignored.
    let partial = flags & NEEDS_CSUM != 0;
    if partial {
        let end = usize::from(start) + usize::from(offset) + 2;
        if !accepted.has(VIRTIO_NET_F_CSUM) || usize::from(start) < ETHERNET || end > frame.len() {
            return None;
        }
    }
    let checksum = if partial { Checksum::Partial { start, offset } } else { Checksum::Unknown };
    let v6 = match gso_type {
        GSO_NONE => return Some(Offload { checksum, gso: None }),
        GSO_TCPV4 => false,
        GSO_TCPV6 => true,
        // Of UDP, or with ECN, which were not offered.
        _ => return None,
    };
    if !partial || !accepted.cuts(v6) {
        return None;
    }
    let size = NonZeroU16::new(u16::from_le_bytes([size_low, size_high]))?;
    // Data offset: the upper half of the byte, in words of 4 bytes.
    let tcp = usize::from(frame.get(usize::from(start) + 12)? >> 4) * 4;
    let end = usize::from(start) + tcp;
    if tcp < TCP || end > frame.len() {
        return None;
    }
    let header = u16::try_from(end).ok()?;
    Some(Offload { checksum, gso: Some(Gso { v6, size, header }) })
}

/// The header of a frame in `buffers` chains; none where it leaves something to the guest that its driver does not take.
pub(super) fn to_guest(offload: Offload, buffers: u16, accepted: Accepted) -> Option<[u8; HEADER]> {
    let takes = accepted.for_guest();
    let mut header = [0; HEADER];
    match offload.checksum {
        Checksum::Partial { start, offset } if takes.checksum => {
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        Checksum::Partial { .. } => return None,
        Checksum::Unknown => {}
    }
    if let Some(gso) = offload.gso {
        let (kind, agreed) = if gso.v6 { (GSO_TCPV6, takes.tso6) } else { (GSO_TCPV4, takes.tso4) };
        if !agreed {
            return None;
        }
        header[1] = kind;
        header[2..4].copy_from_slice(&gso.header.to_le_bytes());
        header[4..6].copy_from_slice(&gso.size.get().to_le_bytes());
    }
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    Some(header)
}
