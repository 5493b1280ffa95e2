//! The guest's end of the wire: what its driver takes, and small frames that wait for room.

use std::collections::VecDeque;

use super::packet::ETHERNET;
use crate::address::{GATEWAY_MAC, GUEST_MAC, Mac};
use crate::wire::{Features, Offload, Wire};

/// Bytes of frames that may wait, at most. It is for answers and datagrams; TCP's data waits in its flow.
const MOST: usize = 512 * 1024;

/// Ethernet's number of ARP.
pub(super) const ARP: u16 = 0x0806;

/// See the module.
pub(super) struct Link {
    features: Features,
    guest: Mac,
    queue: VecDeque<(Vec<u8>, Offload)>,
    bytes: usize,
}

impl Link {
    pub(super) fn new() -> Self {
        Self { features: Features::default(), guest: GUEST_MAC, queue: VecDeque::new(), bytes: 0 }
    }

    /// A driver that takes `features`. Segments are only left to one that computes checksums, as virtio demands.
    pub(super) fn attach(&mut self, features: Features) {
        *self = Self::new();
        self.features = Features {
            checksum: features.checksum,
            tso4: features.tso4 && features.checksum,
            tso6: features.tso6 && features.checksum,
        };
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    /// The guest's address, as its last frame said.
    pub(super) fn set_guest(&mut self, guest: Mac) {
        self.guest = guest;
    }

    /// The header of a frame for the guest with the IP packet behind it.
    pub(super) fn header(&self, frame: &mut [u8]) {
        let kind: u16 = if frame[ETHERNET] >> 4 == 6 { 0x86dd } else { 0x0800 };
        self.header_of(frame, kind);
    }

    fn header_of(&self, frame: &mut [u8], kind: u16) {
        frame[..6].copy_from_slice(&self.guest);
        frame[6..12].copy_from_slice(&GATEWAY_MAC);
        frame[12..ETHERNET].copy_from_slice(&kind.to_be_bytes());
    }

    /// Whether nothing more should be made for the queue.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MOST
    }

    /// Queues an IP packet that needs nothing more. `false`: it was dropped.
    pub(super) fn packet(&mut self, packet: &[u8]) -> bool {
        let mut frame = vec![0; ETHERNET + packet.len()];
        frame[ETHERNET..].copy_from_slice(packet);
        self.header(&mut frame);
        self.frame(frame, Offload::default())
    }

    /// Queues the payload of an ARP frame.
    pub(super) fn arp(&mut self, payload: &[u8]) -> bool {
        let mut frame = vec![0; ETHERNET + payload.len()];
        frame[ETHERNET..].copy_from_slice(payload);
        self.header_of(&mut frame, ARP);
        self.frame(frame, Offload::default())
    }

    /// Queues a whole frame.
    pub(super) fn frame(&mut self, frame: Vec<u8>, offload: Offload) -> bool {
        if self.is_full() {
            return false;
        }
        self.bytes += frame.len();
        self.queue.push_back((frame, offload));
        true
    }

    /// Hands over what there is room for, and says how many bytes of IP packets that was.
    pub(super) fn flush(&mut self, wire: &mut dyn Wire) -> u64 {
        let mut sent = 0;
        while let Some((frame, _)) = self.queue.front() {
            if !wire.has_room(frame.len()) {
                break;
            }
            if let Some((frame, offload)) = self.queue.pop_front() {
                self.bytes -= frame.len();
                sent += (frame.len() - ETHERNET) as u64;
                wire.send(&frame, offload);
            }
        }
        sent
    }
}
