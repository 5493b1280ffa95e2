//! What a guest may do to the device, from bytes: any packet in any chain. For the fuzzer, and for a property test.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType, socket};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connections::TOKENS;
use super::packet::{HEADER, HOST_CID};
use super::{READY_PORT, RX, TX, Vsock};
use crate::virtio::{Active, Device as _, Events, Interrupt};

const CID: u64 = 3;
const SIZE: u16 = 16;
const MEMORY: usize = 1 << 18;
/// One step: a header, and how it is sent.
const STEP: usize = HEADER + 20;

/// Sends a packet for each [`STEP`] bytes of `data`.
///
/// # Panics
/// The host has no descriptors, or the device is wrong.
#[allow(clippy::expect_used, reason = "a failure of the host ends the test")]
pub fn guest(data: &[u8]) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let events = Events::new(&epoll, 0);
    let pair = || UnixStream::pair().expect("sockets");
    let (_agent, ready) = pair();
    // Nobody connects to a socket without a name.
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("socket");
    let mut device = Vsock::new(CID, listener.into(), ready).expect("device");
    let queues = (0..3u32).map(|index| {
        let mut queue = Queue::new(SIZE).expect("a size that is a power of two");
        queue.set_desc_table_address(Some(index << 14), Some(0));
        queue.set_avail_ring_address(Some(index << 14 | 0x1000), Some(0));
        queue.set_used_ring_address(Some(index << 14 | 0x2000), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    });
    let active = Active {
        memory: Arc::new(memory.clone()),
        queues: queues.collect(),
        notifiers: (0..3).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"))).collect(),
        features: device.info().features,
        interrupt: Interrupt::new().expect("eventfd"),
    };
    device.activate(active, &events).expect("epoll");
    let (client, socket) = pair();
    let client = OwnedFd::from(client);
    socket.set_nonblocking(true).expect("socket");
    device.greet(socket.into(), &events);
    super::socket::send(&client, b"CONNECT 1024\nand some data").expect("socket");
    let _ = device.ready(TOKENS.start, epoll::EventFlags::IN, &events);

    let write = |descriptor, at| memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(at));
    let offer = |queue: u64, index: u16| {
        let ring = queue << 14 | 0x1000;
        let slot = ring + 4 + u64::from(index % SIZE) * 2;
        let head = memory.write_obj(index % SIZE / 2 * 2, GuestAddress(slot));
        head.and_then(|()| memory.write_obj(index.wrapping_add(1), GuestAddress(ring + 2)))
    };
    let mut received = 0;
    for (sent, step) in data.chunks_exact(STEP).enumerate() {
        let (mut header, how) = (step[..HEADER].to_vec(), &step[HEADER..]);
        let value = u64::from_le_bytes(*how[4..].first_chunk().expect("20 bytes"));
        if how[0] & 1 != 0 {
            header[..8].copy_from_slice(&CID.to_le_bytes());
            header[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
            header[16..20].copy_from_slice(&1024u32.to_le_bytes());
            let host = if how[0] & 2 != 0 { READY_PORT } else { TOKENS.start };
            header[20..24].copy_from_slice(&host.to_le_bytes());
            header[28..30].copy_from_slice(&1u16.to_le_bytes());
            header[30..32].copy_from_slice(&u16::from(how[1] % 10).to_le_bytes());
        }
        // Lengths that can be right.
        if how[0] & 4 != 0 {
            header[26..28].fill(0);
        }
        memory.write_slice(&header, GuestAddress(0x1_0000)).expect("inside");
        let slot = sent as u16 % SIZE / 2 * 2;
        let first = Descriptor::new(0x1_0000, HEADER as u32, VRING_DESC_F_NEXT as u16, slot + 1);
        let payload = if how[0] & 8 != 0 {
            Descriptor::new(value, value as u32, u16::from(how[2]), u16::from(how[3]))
        } else {
            Descriptor::new(0x2_0000, u32::from(how[2]) << 8, 0, 0)
        };
        let _ = write(first, u64::from(slot) * 16 + (1 << 14));
        let _ = write(payload, u64::from(slot + 1) * 16 + (1 << 14));
        let _ = offer(TX as u64, sent as u16);
        if how[0] & 16 != 0 {
            let len = if how[0] & 32 != 0 { 4096 } else { value as u32 };
            let buffer = Descriptor::new(0x3_0000, len, VRING_DESC_F_WRITE as u16, 0);
            let _ = write(buffer, u64::from(received % SIZE / 2 * 2) * 16);
            let _ = offer(RX as u64, received);
            received = received.wrapping_add(1);
        }
        for queue in [TX, RX] {
            if device.notified(queue, &events).is_err() {
                return device.deactivate(&events);
            }
        }
        for (_, connection) in device.connections.iter() {
            assert!(connection.kept() <= super::to_host::BUFFER);
        }
    }
}
