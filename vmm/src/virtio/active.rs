//! What a device works with while its driver is ready.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceError, Interrupt, QueueState};
use crate::GuestMemory;

/// A chain of buffers that the driver has made available.
pub type Chain = DescriptorChain<GuestMemory>;

/// What a device works with from DRIVER_OK to its reset.
#[derive(Debug)]
pub struct Active {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// One for each of [`Info::queues`](super::Info::queues). Those that the driver does not use are not ready.
    pub queues: Vec<Queue>,
    /// What notifies each queue: the driver's writes to QueueNotify, and the device itself where it has left something for later.
    pub notifiers: Vec<Arc<EventFd>>,
    /// The feature bits that the driver has accepted.
    pub features: u64,
    /// To tell the driver.
    pub interrupt: Interrupt,
}

impl Active {
    /// The next chain of `queue`, if there is one.
    ///
    /// # Errors
    /// The driver has broken the queue.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, DeviceError> {
        if !self.queues[queue].ready() {
            return Ok(None);
        }
        let waiting = self.is_waiting(queue)?;
        match self.queues[queue].iter(GuestMemory::clone(&self.memory))?.next() {
            // It ends early where the ring cannot be read.
            None if waiting => Err(DeviceError::Driver("an available ring outside of its RAM")),
            chain => Ok(chain),
        }
    }

    /// Whether there are chains in `queue` that were not taken.
    fn is_waiting(&self, queue: usize) -> Result<bool, DeviceError> {
        let index = self.queues[queue].avail_idx(&*self.memory, Ordering::Acquire)?;
        Ok(index.0 != self.queues[queue].next_avail())
    }

    /// Gives a chain back with `written` bytes in it. The driver is told by [`signal`](Self::signal).
    ///
    /// # Errors
    /// The driver has broken the queue.
    pub fn push(&mut self, queue: usize, head: u16, written: u32) -> Result<(), DeviceError> {
        Ok(self.queues[queue].add_used(&*self.memory, head, written)?)
    }

    /// Gives several chains back at once, with so many bytes in each: the driver sees all of them as used or none, as those of
    /// one frame must be (section 5.1.6.4).
    ///
    /// The driver is told where [`wants_interrupt`](Self::wants_interrupt), not by [`signal`](Self::signal).
    ///
    /// # Errors
    /// The driver has broken the queue.
    pub fn push_together(&mut self, queue: usize, chains: &[(u16, u32)]) -> Result<(), DeviceError> {
        let Some(((last, written), others)) = chains.split_last() else { return Ok(()) };
        let queue = &mut self.queues[queue];
        let first = queue.next_used();
        for (index, (head, written)) in (0..).zip(others) {
            // A used element (section 2.7.8) is the head, then the length, 32 bits each, behind flags and index.
            let slot = u64::from(first.wrapping_add(index) % queue.size());
            let place = GuestAddress(queue.used_ring().wrapping_add(4 + slot * 8));
            let element = u64::from(*head) | u64::from(*written) << 32;
            self.memory.write_obj(element.to_le(), place).map_err(virtio_queue::Error::GuestMemory)?;
        }
        queue.set_next_used(first.wrapping_add(others.len() as u16));
        // Writes the last element, and then the index.
        Ok(queue.add_used(&*self.memory, *last, *written)?)
    }

    /// Whether the driver wants an interrupt for what was given back since the used ring's position was `told` (section 2.7.7).
    ///
    /// # Errors
    /// The driver has broken the queue.
    pub fn wants_interrupt(&self, queue: usize, told: u16) -> Result<bool, DeviceError> {
        let queue = &self.queues[queue];
        if !queue.event_idx_enabled() {
            return Ok(true);
        }
        let place = GuestAddress(queue.avail_ring().wrapping_add(4 + 2 * u64::from(queue.size())));
        // The index of the used ring is written before the driver's wish is read.
        fence(Ordering::SeqCst);
        let event: u16 = self
            .memory
            .load(place, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(virtio_queue::Error::GuestMemory)?;
        let used = queue.next_used();
        Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(told))
    }

    /// Raises the interrupt where the driver wants one for what was given back (section 2.7.7).
    ///
    /// # Errors
    /// The driver has broken the queue.
    pub fn signal(&mut self, queue: usize) -> Result<(), DeviceError> {
        if self.queues[queue].ready() && self.queues[queue].needs_notification(&*self.memory)? {
            self.interrupt.queue();
        }
        Ok(())
    }

    /// Handles the chains of `queue`; `handle` tells how many bytes it has written to each.
    ///
    /// At most a queue full of them: a driver that never stops must not keep the worker from its other devices. For the rest
    /// the queue is notified again.
    ///
    /// # Errors
    /// The driver has broken the queue, or `handle` has failed.
    pub fn drain(
        &mut self,
        queue: usize,
        mut handle: impl FnMut(&GuestMemory, Chain) -> Result<u32, DeviceError>,
    ) -> Result<(), DeviceError> {
        if !self.queues[queue].ready() {
            return Ok(());
        }
        let mut left = self.queues[queue].size();
        self.queues[queue].disable_notification(&*self.memory)?;
        loop {
            while left > 0 {
                let Some(chain) = self.pop(queue)? else { break };
                let head = chain.head_index();
                let written = handle(&self.memory, chain)?;
                self.push(queue, head, written)?;
                left -= 1;
            }
            let more = self.queues[queue].enable_notification(&*self.memory)?;
            if more && left == 0 {
                // Fails only when it is notified already.
                let _ = self.notifiers[queue].write(1);
            }
            if !more || left == 0 {
                break;
            }
        }
        self.signal(queue)
    }

    /// The queues as they are saved.
    pub fn save(&self) -> Vec<QueueState> {
        self.queues.iter().map(QueueState::from).collect()
    }
}
