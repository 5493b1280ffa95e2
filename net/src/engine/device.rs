//! smoltcp's network device: IP packets of one TCP flow, from a frame of the guest and to the wire.

use std::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{self, Checksum as Computed, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::IpProtocol;

use super::checksum;
use super::link::Link;
use super::packet::{ETHERNET, Packet};
use crate::address::MTU;
use crate::wire::{Checksum, Features, Gso, MAX_FRAME, Offload, Wire};

/// The most bytes of headers that smoltcp makes: Ethernet, IPv6, and TCP with options.
const HEADERS: usize = ETHERNET + 40 + 60;

/// The longest segment that the guest gets, for IPv4 and IPv6.
pub(super) const fn mss(v6: bool) -> u16 {
    if v6 { MTU - 60 } else { MTU - 40 }
}

/// Reads the longest segment that the guest takes from its SYN, and bounds it there to what the wire takes.
pub(super) fn clamp_mss(segment: &mut [u8], most: u16) -> u16 {
    // RFC 9293, section 3.7.1: where the option is missing. smoltcp has the same, and a floor of 48.
    let mut found = 536;
    let end = usize::from(segment[12] >> 4) * 4;
    let mut at = 20;
    while at + 1 < end.min(segment.len()) {
        match segment[at] {
            0 => break,
            1 => at += 1,
            kind => {
                let len = usize::from(segment[at + 1]);
                if len < 2 || at + len > end.min(segment.len()) {
                    break;
                }
                if kind == 2 && len == 4 {
                    let value = u16::from_be_bytes([segment[at + 2], segment[at + 3]]);
                    found = if value == 0 { 536 } else { value }.min(most).max(48);
                    segment[at + 2..at + 4].copy_from_slice(&found.to_be_bytes());
                }
                at += len;
            }
        }
    }
    found.min(most)
}

/// See the module. What smoltcp answers to a packet at once waits in the link's queue; all else goes to the wire.
pub(super) struct Device<'a> {
    incoming: Option<&'a [u8]>,
    link: &'a mut Link,
    wire: Option<&'a mut dyn Wire>,
    scratch: &'a mut [u8],
    /// The flow's longest segment to the guest.
    mss: u16,
    /// Bytes that a frame may have now.
    need: usize,
    /// There was no room on the wire.
    pub(super) blocked: bool,
    /// Bytes of IP packets that went to the wire.
    pub(super) sent: u64,
}

impl<'a> Device<'a> {
    /// One that knows no more than what it can do.
    pub(super) fn idle(link: &'a mut Link, scratch: &'a mut [u8]) -> Self {
        Self { incoming: None, link, wire: None, scratch, mss: 536, need: 0, blocked: false, sent: 0 }
    }

    /// One that has got `packet`.
    pub(super) fn receiving(packet: &'a [u8], link: &'a mut Link, scratch: &'a mut [u8], mss: u16) -> Self {
        Self { incoming: Some(packet), mss, ..Self::idle(link, scratch) }
    }

    /// One that sends for a flow with `queued` bytes to send.
    pub(super) fn sending(
        wire: &'a mut dyn Wire,
        link: &'a mut Link,
        scratch: &'a mut [u8],
        mss: u16,
        queued: usize,
    ) -> Self {
        let features = link.features();
        let most = if features.tso4 || features.tso6 { MAX_FRAME } else { HEADERS + usize::from(mss) };
        let need = (HEADERS + queued).min(most);
        Self { wire: Some(wire), mss, need, ..Self::idle(link, scratch) }
    }
}

impl phy::Device for Device<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = ToSend<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        let packet = self.incoming.take()?;
        let send = ToSend {
            link: self.link,
            wire: None,
            scratch: self.scratch,
            mss: self.mss,
            sent: &mut self.sent,
        };
        Some((Received(packet), send))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        let wire: &mut dyn Wire = match &mut self.wire {
            Some(wire) => &mut **wire,
            None => return None,
        };
        if !wire.has_room(self.need) {
            self.blocked = true;
            return None;
        }
        Some(ToSend {
            link: self.link,
            wire: Some(wire),
            scratch: self.scratch,
            mss: self.mss,
            sent: &mut self.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Computed::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // Not the wire's: smoltcp drops IPv6 packets that are longer than this, those too that are to be cut. `clamp_mss` and
        // `finish` see to the wire's.
        capabilities.max_transmission_unit = usize::from(u16::MAX);
        capabilities.checksum = checksum;
        let Features { tso4, tso6, .. } = self.link.features();
        // Whole segments, where the guest takes those of the wire's MTU.
        let whole = |headers: usize, mss: u16| {
            let mss = usize::from(mss);
            NonZeroUsize::new(headers + (usize::from(u16::MAX) - headers) / mss * mss)
        };
        capabilities.segmentation.tcpv4 = if tso4 { whole(40, mss(false)) } else { None };
        capabilities.segmentation.tcpv6 = if tso6 { whole(60, mss(true)) } else { None };
        capabilities
    }
}

/// A packet of the guest.
pub(super) struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a packet to the guest.
pub(super) struct ToSend<'a> {
    link: &'a mut Link,
    wire: Option<&'a mut dyn Wire>,
    scratch: &'a mut [u8],
    mss: u16,
    sent: &'a mut u64,
}

impl phy::TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let frame = &mut self.scratch[..ETHERNET + len];
        let result = f(&mut frame[ETHERNET..]);
        self.link.header(frame);
        let offload = finish(frame, self.link.features(), self.mss);
        match self.wire {
            Some(wire) => {
                *self.sent += len as u64;
                wire.send(frame, offload);
            }
            // It acknowledges or resets, and the guest will ask again where it is dropped.
            None => {
                self.link.frame(frame.to_vec(), offload);
            }
        }
        result
    }
}

/// Completes a frame with a TCP segment, as far as the guest has not taken that upon itself.
fn finish(frame: &mut [u8], features: Features, mss: u16) -> Offload {
    let Some(packet) = Packet::parse(&frame[ETHERNET..]) else {
        return Offload::default();
    };
    let (source, destination, len) = (packet.source, packet.destination, packet.payload.len());
    let start = frame.len() - len;
    let v6 = source.is_ipv6();
    let header = start + usize::from(frame[start + 12] >> 4) * 4;
    let syn = frame[start + 13] & 2 != 0;
    if syn {
        clamp_mss(&mut frame[start..], super::device::mss(v6));
    }
    let sum = checksum::pseudo(source, destination, IpProtocol::Tcp.into(), len);
    let field = start + 16..start + 18;
    if features.checksum {
        frame[field].copy_from_slice(&checksum::fold(sum).to_be_bytes());
        let gso = NonZeroU16::new(mss)
            .filter(|mss| frame.len() - header > usize::from(mss.get()))
            .map(|size| Gso { v6, size, header: header as u16 });
        Offload { checksum: Checksum::Partial { start: start as u16, offset: 16 }, gso }
    } else {
        frame[field.clone()].fill(0);
        let sum = !checksum::fold(checksum::add(sum, &frame[start..]));
        frame[field].copy_from_slice(&sum.to_be_bytes());
        Offload::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP header with these options.
    fn segment(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment.extend(options);
        segment.resize(segment.len().div_ceil(4) * 4, 0);
        segment[12] = (segment.len() as u8 / 4) << 4;
        segment
    }

    #[test]
    fn the_longest_segment_is_bounded_by_both() {
        let with = |value: u16| [&[1, 1, 2, 4][..], &value.to_be_bytes(), &[3, 3, 7]].concat();
        for (offered, taken) in [(1460, 1460), (9000, 1460), (500, 500), (1, 48), (0, 536)] {
            let mut segment = segment(&with(offered));
            assert_eq!(clamp_mss(&mut segment, mss(false)), taken);
            assert_eq!(segment[24..26], taken.to_be_bytes(), "smoltcp is to see no other");
        }
        for options in [&[][..], &[0, 2, 4, 5, 0xb4], &[2], &[2, 1, 9, 9], &[2, 200, 9, 9], &[5, 0]] {
            let mut header = segment(options);
            assert_eq!(clamp_mss(&mut header, mss(true)), 536, "{options:?}");
            assert_eq!(header, segment(options));
        }
    }
}
