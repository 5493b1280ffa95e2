//! Frames for the guest: the receive queue as a [`Wire`].

use std::collections::VecDeque;
use std::sync::Arc;

use net::wire::{MAX_FRAME, Offload, Wire};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT as _;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, Permissions};

use super::header::{Accepted, HEADER, to_guest};
use super::{LONGEST_SEGMENT, MAX_BUFFERS, RX};
use crate::GuestMemory;
use crate::virtio::{Active, Chain, DeviceError};

/// The receive queue during one pass. Chains are taken from it ahead of the frames that fill them: a frame may need several.
pub(super) struct Receiver<'a> {
    active: &'a mut Active,
    memory: GuestMemory,
    accepted: Accepted,
    /// Taken, and not filled yet.
    held: VecDeque<Held>,
    /// Bytes of those.
    room: usize,
    /// Frames that were not sent, because their header was none for this driver or there was no room.
    dropped: u64,
    error: Option<DeviceError>,
}

/// A chain of the driver.
struct Held {
    head: u16,
    buffers: Vec<(GuestAddress, usize)>,
    room: usize,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(active: &'a mut Active) -> Self {
        let memory = Arc::clone(&active.memory);
        let accepted = Accepted(active.features);
        Self { active, memory, accepted, held: VecDeque::new(), room: 0, dropped: 0, error: None }
    }

    /// Leaves the chains that were not filled to the next pass, and tells how many frames were dropped.
    pub(super) fn finish(self) -> Result<u64, DeviceError> {
        let queue = &mut self.active.queues[RX];
        queue.set_next_avail(queue.next_avail().wrapping_sub(self.held.len() as u16));
        self.error.map_or(Ok(self.dropped), Err)
    }

    fn is_mergeable(&self) -> bool {
        self.accepted.0 & 1 << VIRTIO_NET_F_MRG_RXBUF != 0
    }

    /// Takes chains until a frame of `len` bytes fits; without MRG_RXBUF into the first one (section 5.1.6.3.1). The driver is
    /// asked to tell of new buffers only where there are none left.
    fn gather(&mut self, len: usize) -> Result<bool, DeviceError> {
        if !self.active.queues[RX].ready() {
            return Ok(false);
        }
        while self.room() < HEADER + len {
            if !self.is_mergeable() && !self.held.is_empty() {
                return Err(DeviceError::Driver("a receive buffer that is shorter than a frame"));
            }
            if let Some(chain) = self.active.pop(RX)? {
                self.hold(chain)?;
            } else if !self.active.queues[RX].enable_notification(&*self.memory)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes that there are for the next frame, its header among them.
    fn room(&self) -> usize {
        if self.is_mergeable() { self.room } else { self.held.front().map_or(0, |held| held.room) }
    }

    fn hold(&mut self, chain: Chain) -> Result<(), DeviceError> {
        let head = chain.head_index();
        let mut buffers = Vec::with_capacity(1);
        let mut room = 0;
        for descriptor in chain.writable().take(MAX_BUFFERS) {
            // The longest frame needs no more of it.
            let len = (descriptor.len() as usize).min(HEADER + MAX_FRAME - room);
            if !self.memory.check_range(descriptor.addr(), len, Permissions::Write) {
                return Err(DeviceError::Driver("a buffer outside of its memory"));
            }
            buffers.push((descriptor.addr(), len));
            room += len;
        }
        // Each has to be as long as that, whether a frame begins in it or not.
        if room < HEADER {
            return Err(DeviceError::Driver("a receive buffer that is shorter than a header"));
        }
        self.room += room;
        self.held.push_back(Held { head, buffers, room });
        Ok(())
    }

    /// Whether the frame was sent.
    fn deliver(&mut self, frame: &[u8], offload: Offload) -> Result<bool, DeviceError> {
        if frame.len() > MAX_FRAME || !self.gather(frame.len())? {
            return Ok(false);
        }
        let total = HEADER + frame.len();
        let mut sum = 0;
        let chains = 1 + self
            .held
            .iter()
            .take_while(|held| {
                sum += held.room;
                sum < total
            })
            .count();
        let Some(header) = to_guest(offload, chains as u16, self.accepted) else { return Ok(false) };
        let mut used = Vec::with_capacity(chains);
        let mut source = Source { header: &header, frame };
        for held in self.held.drain(..chains) {
            self.room -= held.room;
            used.push((held.head, source.fill(&self.memory, &held)?));
        }
        self.active.push_together(RX, &used)?;
        Ok(true)
    }

    fn keep<T: Default>(&mut self, result: Result<T, DeviceError>) -> T {
        result.unwrap_or_else(|error| {
            self.error = Some(error);
            T::default()
        })
    }
}

impl Wire for Receiver<'_> {
    fn has_room(&mut self, len: usize) -> bool {
        if self.error.is_some() {
            return false;
        }
        // Where the driver takes no segments to be received whole, no frame is longer than the wire's MTU allows, whatever is
        // asked for; its buffers need not be either.
        let takes = self.accepted.for_guest();
        let longest = if takes.tso4 || takes.tso6 { MAX_FRAME } else { LONGEST_SEGMENT };
        let result = self.gather(len.min(longest));
        self.keep(result)
    }

    fn send(&mut self, frame: &[u8], offload: Offload) {
        let sent = self.error.is_none() && {
            let result = self.deliver(frame, offload);
            self.keep(result)
        };
        self.dropped += u64::from(!sent);
    }
}

/// What is still to be written of a frame.
struct Source<'a> {
    header: &'a [u8],
    frame: &'a [u8],
}

impl Source<'_> {
    /// Writes as much as there is or fits, and tells how much that is.
    fn fill(&mut self, memory: &GuestMemory, held: &Held) -> Result<u32, DeviceError> {
        let mut written = 0;
        for &(mut address, mut room) in &held.buffers {
            for part in [&mut self.header, &mut self.frame] {
                let (now, later) = part.split_at(part.len().min(room));
                if now.is_empty() {
                    continue;
                }
                // Checked when it was taken, and memory does not go away.
                memory
                    .write_slice(now, address)
                    .map_err(|_| DeviceError::Driver("a buffer outside of its memory"))?;
                *part = later;
                address = GuestAddress(address.0.wrapping_add(now.len() as u64));
                room -= now.len();
                written += now.len() as u32;
            }
        }
        Ok(written)
    }
}
