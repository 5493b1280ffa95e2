//! The driver's side of a device, for tests: queues in a memory of its own, and the buffers in them.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::Queue;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::GuestMemory;
use crate::virtio::{Active, Info, Interrupt, QueueState};

/// Bytes of the memory, which begins at 0.
pub(crate) const MEMORY: u64 = 1 << 20;
/// Each queue has its own 16 KiB: descriptors at 0, the available ring at 0x1000, the used ring at 0x2000.
const QUEUE_BYTES: u64 = 0x4000;
const QUEUES: u64 = 0x4000;
const BUFFERS: u64 = 0x40000;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer<'a> {
    /// For the device to read.
    Out(&'a [u8]),
    /// So many bytes for the device to write, 0xa5 before it does.
    In(u32),
}

pub(crate) struct Driver {
    pub(crate) memory: GuestMemory,
    pub(crate) interrupt: Interrupt,
    pub(crate) notifiers: Vec<Arc<EventFd>>,
    sizes: &'static [u16],
    features: u64,
    next_buffer: u64,
    /// For each queue: the next descriptor, and what of the used ring was seen.
    places: Vec<(u16, u16)>,
}

impl Driver {
    /// A driver that takes all features that the device offers.
    pub(crate) fn new(info: &Info) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let notifiers = info.queues.iter().map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        Self {
            memory: Arc::new(memory),
            interrupt: Interrupt::new().unwrap(),
            notifiers: notifiers.collect(),
            sizes: info.queues,
            features: info.features,
            next_buffer: BUFFERS,
            places: vec![(0, 0); info.queues.len()],
        }
    }

    /// Without `feature`.
    pub(crate) fn without(mut self, feature: u32) -> Self {
        self.features &= !(1 << feature);
        self
    }

    /// What the device is given at DRIVER_OK.
    pub(crate) fn activate(&self) -> Active {
        let states = self.sizes.iter().enumerate().map(|(queue, &size)| QueueState {
            max_size: size,
            size,
            ready: true,
            event_idx: self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            next_avail: 0,
            next_used: 0,
            desc_table: table(queue),
            avail_ring: available(queue),
            used_ring: used(queue),
        });
        self.restore(&states.collect::<Vec<_>>())
    }

    /// What a device is given when it is restored with `queues`.
    pub(crate) fn restore(&self, queues: &[QueueState]) -> Active {
        Active {
            memory: Arc::clone(&self.memory),
            queues: queues.iter().map(|&state| Queue::try_from(state).unwrap()).collect(),
            notifiers: self.notifiers.clone(),
            features: self.features,
            interrupt: self.interrupt.clone(),
        }
    }

    /// Makes a chain of `buffers` available, without a notification, and tells where they are.
    pub(crate) fn offer(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Vec<GuestAddress> {
        let placed: Vec<_> = buffers.iter().map(|&buffer| self.place(buffer)).collect();
        let chain = chain(&placed, self.places[queue].0, self.sizes[queue]);
        self.offer_raw(queue, &chain);
        placed.iter().map(Descriptor::addr).collect()
    }

    /// As [`offer`](Self::offer), through an indirect table.
    pub(crate) fn offer_indirect(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Vec<GuestAddress> {
        let placed: Vec<_> = buffers.iter().map(|&buffer| self.place(buffer)).collect();
        let table = self.table(&chain(&placed, 0, u16::MAX));
        self.offer_raw(queue, &[table]);
        placed.iter().map(Descriptor::addr).collect()
    }

    /// A descriptor of an indirect table of `entries`.
    pub(crate) fn table(&mut self, entries: &[Descriptor]) -> Descriptor {
        self.table_of_bytes(entries, entries.len() as u32 * 16)
    }

    /// As [`table`](Self::table), which says that it has `len` bytes.
    pub(crate) fn table_of_bytes(&mut self, entries: &[Descriptor], len: u32) -> Descriptor {
        let table = self.allocate(entries.len() as u64 * 16);
        for (index, &entry) in entries.iter().enumerate() {
            self.memory
                .write_obj(RawDescriptor::from(entry), GuestAddress(table.0 + index as u64 * 16))
                .unwrap();
        }
        Descriptor::new(table.0, len, VRING_DESC_F_INDIRECT as u16, 0)
    }

    /// Puts `descriptors` into the table as they are and makes the first one available as a head.
    pub(crate) fn offer_raw(&mut self, queue: usize, descriptors: &[Descriptor]) {
        let size = self.sizes[queue];
        let head = self.places[queue].0;
        for (index, &descriptor) in descriptors.iter().enumerate() {
            let slot = (head + index as u16) % size;
            let place = GuestAddress(table(queue) + u64::from(slot) * 16);
            self.memory.write_obj(RawDescriptor::from(descriptor), place).unwrap();
        }
        self.places[queue].0 = (head + descriptors.len() as u16) % size;
        self.offer_head(queue, head);
    }

    /// Makes the descriptor `head` available.
    pub(crate) fn offer_head(&mut self, queue: usize, head: u16) {
        let index: u16 = self.memory.read_obj(GuestAddress(available(queue) + 2)).unwrap();
        let slot = available(queue) + 4 + u64::from(index % self.sizes[queue]) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        // used_event: an interrupt is wanted for the next buffer that is used.
        let event = available(queue) + 4 + u64::from(self.sizes[queue]) * 2;
        self.memory.write_obj(self.places[queue].1, GuestAddress(event)).unwrap();
        self.memory
            .store(
                index.wrapping_add(1),
                GuestAddress(available(queue) + 2),
                std::sync::atomic::Ordering::Release,
            )
            .unwrap();
    }

    /// A buffer in memory, as a descriptor without a next one.
    pub(crate) fn place(&mut self, buffer: Buffer<'_>) -> Descriptor {
        let (bytes, flags) = match buffer {
            Buffer::Out(bytes) => (bytes.to_vec(), 0),
            Buffer::In(len) => (vec![0xa5; len as usize], VRING_DESC_F_WRITE as u16),
        };
        let address = self.allocate(bytes.len() as u64);
        self.memory.write_slice(&bytes, address).unwrap();
        Descriptor::new(address.0, bytes.len() as u32, flags, 0)
    }

    fn allocate(&mut self, len: u64) -> GuestAddress {
        if self.next_buffer + len > MEMORY {
            self.next_buffer = BUFFERS;
        }
        let address = GuestAddress(self.next_buffer);
        self.next_buffer += len.next_multiple_of(16);
        address
    }

    /// How many bytes were written to each chain that was given back since the last call.
    pub(crate) fn taken(&mut self, queue: usize) -> Vec<u32> {
        let index: u16 =
            self.memory.load(GuestAddress(used(queue) + 2), std::sync::atomic::Ordering::Acquire).unwrap();
        let mut lengths = Vec::new();
        while self.places[queue].1 != index {
            let slot = used(queue) + 4 + u64::from(self.places[queue].1 % self.sizes[queue]) * 8;
            lengths.push(self.memory.read_obj(GuestAddress(slot + 4)).unwrap());
            self.places[queue].1 = self.places[queue].1.wrapping_add(1);
        }
        lengths
    }

    /// As [`taken`](Self::taken), when the device has raised its interrupt.
    pub(crate) fn wait(&mut self, queue: usize) -> Vec<u32> {
        let limit = Timespec::try_from(Duration::from_secs(20)).unwrap();
        let irqfd = self.interrupt.irqfd();
        // SAFETY: the descriptor is open for as long as `irqfd` is borrowed.
        let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(irqfd)) };
        let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "the device has raised no interrupt in 20 s");
        irqfd.read().unwrap();
        self.taken(queue)
    }

    pub(crate) fn notify(&self, queue: usize) {
        self.notifiers[queue].write(1).unwrap();
    }

    pub(crate) fn bytes(&self, address: GuestAddress, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, address).unwrap();
        bytes
    }

    /// All of the memory.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.bytes(GuestAddress(0), MEMORY as usize)
    }
}

/// `buffers` as a chain in the slots from `first` on, of a table of `size`.
fn chain(buffers: &[Descriptor], first: u16, size: u16) -> Vec<Descriptor> {
    let last = buffers.len() - 1;
    let link = |(index, buffer): (usize, &Descriptor)| {
        let flags = if index < last { buffer.flags() | VRING_DESC_F_NEXT as u16 } else { buffer.flags() };
        Descriptor::new(buffer.addr().0, buffer.len(), flags, (first + index as u16 + 1) % size)
    };
    buffers.iter().enumerate().map(link).collect()
}

fn table(queue: usize) -> u64 {
    QUEUES + queue as u64 * QUEUE_BYTES
}

fn available(queue: usize) -> u64 {
    table(queue) + 0x1000
}

fn used(queue: usize) -> u64 {
    table(queue) + 0x2000
}
