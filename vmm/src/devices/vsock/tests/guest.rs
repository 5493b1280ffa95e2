//! A guest's driver and a machine around one device, all on one thread: nothing happens but what a test asks for.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::Queue;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::packet::{HEADER, HOST_CID, Header, Op, STREAM};
use super::super::{Pair, RX, TX, Vsock};
use crate::GuestMemory;
use crate::virtio::{Active, Device as _, DeviceError, Events, Interrupt, QueueState};

pub(super) const CID: u64 = 3;
const SIZES: [u16; 3] = [128, 128, 16];
/// A queue's descriptors, available ring (+0x1000) and used ring (+0x2000).
const QUEUES: [u64; 3] = [0x4000, 0x8000, 0xc000];
const RX_BUFFERS: u64 = 0x10_0000;
pub(super) const RX_BUFFER: u32 = 4096;
/// Each packet to send has a table, a header at +0x1000 and a payload at +0x2000.
const TX_BUFFERS: u64 = 0x20_0000;
const TX_BUFFER: u64 = 0x1_2000;
const MEMORY: usize = 0x20_0000 + 128 * 0x1_2000;

pub(super) struct Machine {
    pub(super) device: Vsock,
    pub(super) epoll: OwnedFd,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Interrupt,
    pub(super) notifiers: Vec<Arc<EventFd>>,
    /// The other end of the `ready` stream.
    pub(super) ready: UnixStream,
    pub(super) path: std::path::PathBuf,
    _directory: tempfile::TempDir,
    /// Notifications of the driver that the device had asked for.
    pub(super) kicks: usize,
    /// Events that the sockets have woken the device for.
    pub(super) wakeups: usize,
    /// Receive buffers that the driver holds.
    free: Vec<u16>,
    used_seen: u16,
    next_tx: u16,
}

impl Machine {
    /// With all receive buffers available.
    pub(super) fn new() -> Self {
        let mut machine = Self::without_buffers();
        machine.offer(usize::MAX);
        machine
    }

    pub(super) fn without_buffers() -> Self {
        let mut machine = Self::inactive();
        machine.start();
        machine
    }

    pub(super) fn inactive() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (ready, device_end) = UnixStream::pair().unwrap();
        ready.set_nonblocking(true).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self {
            device: Vsock::new(CID, listener, device_end).unwrap(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            memory: Arc::new(memory),
            interrupt: Interrupt::new().unwrap(),
            notifiers: (0..3).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).collect(),
            ready,
            path,
            _directory: directory,
            kicks: 0,
            wakeups: 0,
            free: (0..SIZES[RX]).collect(),
            used_seen: 0,
            next_tx: 0,
        }
    }

    pub(super) fn fresh_queues() -> Vec<QueueState> {
        let state = |(&base, &size): (&u64, &u16)| QueueState {
            max_size: size,
            size,
            ready: true,
            event_idx: true,
            next_avail: 0,
            next_used: 0,
            desc_table: base,
            avail_ring: base + 0x1000,
            used_ring: base + 0x2000,
        };
        QUEUES.iter().zip(&SIZES).map(state).collect()
    }

    pub(super) fn active(&self, queues: &[QueueState]) -> Active {
        Active {
            memory: Arc::clone(&self.memory),
            queues: queues.iter().map(|&state| Queue::try_from(state).unwrap()).collect(),
            notifiers: self.notifiers.clone(),
            features: self.device.info().features,
            interrupt: self.interrupt.clone(),
        }
    }

    pub(super) fn notify(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.device.notified(queue, &Events::new(&self.epoll, 0))
    }

    /// What a worker does until nothing is ready.
    pub(super) fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.turn(Duration::ZERO) {
                return;
            }
        }
        panic!("a busy loop");
    }

    /// What a worker does once; waits for it at most so long. Tells whether there was anything.
    pub(super) fn turn(&mut self, wait: Duration) -> bool {
        let mut ready = Vec::with_capacity(64);
        let wait = Timespec::try_from(wait).unwrap();
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&wait)).unwrap();
        for event in &ready {
            self.wakeups += 1;
            let token = event.data.u64() as u32;
            self.device.ready(token, event.flags, &Events::new(&self.epoll, 0)).unwrap();
        }
        let mut any = !ready.is_empty();
        for queue in 0..3 {
            if self.notifiers[queue].read().is_ok() {
                self.notify(queue).unwrap();
                any = true;
            }
        }
        any
    }

    /// Makes `count` receive buffers available, or those that there are; notifies the device if it has asked for that.
    pub(super) fn offer(&mut self, count: usize) {
        let count = count.min(self.free.len());
        let indices: Vec<u16> = self.free.drain(..count).collect();
        for &index in &indices {
            let address = RX_BUFFERS + u64::from(index) * u64::from(RX_BUFFER);
            let descriptor = Descriptor::new(address, RX_BUFFER, VRING_DESC_F_WRITE as u16, 0);
            self.write_descriptor(QUEUES[RX] + u64::from(index) * 16, descriptor);
        }
        if self.make_available(RX, &indices) {
            self.kicks += 1;
            self.notify(RX).unwrap();
        }
    }

    pub(super) fn write_descriptor(&self, address: u64, descriptor: Descriptor) {
        self.memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(address)).unwrap();
    }

    /// Tells whether the device wants to be notified (section 2.7.10).
    fn make_available(&mut self, queue: usize, heads: &[u16]) -> bool {
        let (ring, size) = (QUEUES[queue] + 0x1000, SIZES[queue]);
        let old: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        for (offset, &head) in heads.iter().enumerate() {
            let slot = old.wrapping_add(offset as u16) % size;
            self.memory.write_obj(head, GuestAddress(ring + 4 + u64::from(slot) * 2)).unwrap();
        }
        let new = old.wrapping_add(heads.len() as u16);
        self.memory.store(new, GuestAddress(ring + 2), Ordering::SeqCst).unwrap();
        let event = QUEUES[queue] + 0x2000 + 4 + u64::from(size) * 8;
        let event: u16 = self.memory.load(GuestAddress(event), Ordering::SeqCst).unwrap();
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Sends a packet, in a chain as Linux makes it: an indirect table of the header and of the payload in `parts`.
    pub(super) fn try_send(
        &mut self,
        header: Header,
        payload: &[u8],
        parts: usize,
    ) -> Result<(), DeviceError> {
        let head = self.next_tx;
        self.next_tx = (head + 1) % SIZES[TX];
        let base = TX_BUFFERS + u64::from(head) * TX_BUFFER;
        self.memory.write_slice(&header.to_bytes(), GuestAddress(base + 0x1000)).unwrap();
        self.memory.write_slice(payload, GuestAddress(base + 0x2000)).unwrap();
        let mut buffers = vec![(base + 0x1000, HEADER)];
        let mut at = base + 0x2000;
        for chunk in payload.chunks(payload.len().div_ceil(parts).max(1)) {
            buffers.push((at, chunk.len()));
            at += chunk.len() as u64;
        }
        for (index, &(address, len)) in buffers.iter().enumerate() {
            let more = index + 1 < buffers.len();
            let flags = if more { VRING_DESC_F_NEXT as u16 } else { 0 };
            let descriptor = Descriptor::new(address, len as u32, flags, index as u16 + 1);
            self.write_descriptor(base + index as u64 * 16, descriptor);
        }
        let table = Descriptor::new(base, buffers.len() as u32 * 16, VRING_DESC_F_INDIRECT as u16, 0);
        self.try_send_raw(head, table)
    }

    pub(super) fn try_send_raw(&mut self, head: u16, descriptor: Descriptor) -> Result<(), DeviceError> {
        self.write_descriptor(QUEUES[TX] + u64::from(head) * 16, descriptor);
        // Like Linux it wants an interrupt for the next one that is used.
        let used: u16 = self.memory.load(GuestAddress(QUEUES[TX] + 0x2002), Ordering::SeqCst).unwrap();
        self.memory
            .write_obj(used, GuestAddress(QUEUES[TX] + 0x1000 + 4 + u64::from(SIZES[TX]) * 2))
            .unwrap();
        if self.make_available(TX, &[head]) {
            self.kicks += 1;
            self.notify(TX)?;
        }
        Ok(())
    }

    /// How many interrupts there were since the last call.
    pub(super) fn interrupts(&self) -> u64 {
        self.interrupt.irqfd().read().unwrap_or(0)
    }

    /// Makes a receive buffer of any kind available.
    pub(super) fn try_offer_raw(&mut self, descriptor: Descriptor) -> Result<(), DeviceError> {
        self.write_descriptor(QUEUES[RX], descriptor);
        assert!(self.make_available(RX, &[0]));
        self.notify(RX)
    }

    /// The driver starts again from nothing, after a reset.
    pub(super) fn again(mut self) -> Self {
        for base in QUEUES {
            self.memory.write_slice(&[0; 0x3000], GuestAddress(base)).unwrap();
        }
        (self.free, self.used_seen, self.next_tx) = ((0..SIZES[RX]).collect(), 0, 0);
        self.start();
        self
    }

    fn start(&mut self) {
        let active = self.active(&Self::fresh_queues());
        self.device.activate(active, &Events::new(&self.epoll, 0)).unwrap();
        (0..3).for_each(|queue| self.notify(queue).unwrap());
    }

    /// The memory and the driver of `other`, as they are now.
    pub(super) fn take_memory(&mut self, other: &Self) {
        let mut bytes = vec![0; MEMORY];
        other.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        self.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        self.free = other.free.clone();
        (self.used_seen, self.next_tx) = (other.used_seen, other.next_tx);
    }

    /// As a worker resumes.
    pub(super) fn resume(&mut self) {
        self.device.resume(&Events::new(&self.epoll, 0)).unwrap();
        (0..3).for_each(|queue| self.notify(queue).unwrap());
    }

    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        self.try_send(header, payload, 1).unwrap();
    }

    /// A packet of `pair` from the guest, which has 256 KiB for what it receives and has passed nothing on.
    pub(super) fn tell(&mut self, pair: Pair, op: Op) {
        self.send(from_guest(pair, op), &[]);
    }

    /// All packets that were received. Their buffers are the driver's again.
    pub(super) fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let ring = QUEUES[RX] + 0x2000;
        let index: u16 = self.memory.load(GuestAddress(ring + 2), Ordering::SeqCst).unwrap();
        let mut packets = Vec::new();
        while self.used_seen != index {
            let slot = ring + 4 + u64::from(self.used_seen % SIZES[RX]) * 8;
            let id: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let written: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
            let mut bytes = vec![0; written as usize];
            let address = RX_BUFFERS + u64::from(id) * u64::from(RX_BUFFER);
            self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            let header = Header::from_bytes(bytes.first_chunk().unwrap());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            assert_eq!(header.len as usize, bytes.len() - HEADER);
            packets.push((header, bytes.split_off(HEADER)));
            self.free.push(id as u16);
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        // used_event: an interrupt for the next one.
        let event = QUEUES[RX] + 0x1000 + 4 + u64::from(SIZES[RX]) * 2;
        self.memory.write_obj(self.used_seen, GuestAddress(event)).unwrap();
        packets
    }

    /// Runs until nothing is ready, with all buffers available, and tells what was received.
    pub(super) fn settle(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.offer(usize::MAX);
            self.run();
            let more = self.received();
            if more.is_empty() {
                return packets;
            }
            packets.extend(more);
        }
    }

    pub(super) fn client(&mut self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A client that asks for the guest's port 1024; its request has been received.
    pub(super) fn requesting(&mut self) -> (UnixStream, Pair) {
        let mut client = self.client();
        client.write_all(b"CONNECT 1024\n").unwrap();
        let packets = self.settle();
        let [(header, payload)] = &packets[..] else { panic!("one request: {packets:?}") };
        assert_eq!(header.op, Op::Request as u16);
        assert_eq!((header.kind, header.dst_port, header.len), (STREAM, 1024, 0));
        assert!(header.src_port >= 1 << 30 && payload.is_empty());
        assert_eq!((header.buf_alloc, header.fwd_cnt), (64 << 10, 0));
        (client, Pair { host: header.src_port, guest: header.dst_port })
    }

    /// A client whose connection the guest has accepted.
    pub(super) fn connected(&mut self) -> (UnixStream, Pair) {
        let (mut client, pair) = self.requesting();
        self.tell(pair, Op::Response);
        let expected = format!("OK {}\n", pair.host);
        let mut line = vec![0; expected.len()];
        client.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), expected);
        (client, pair)
    }
}

pub(super) fn from_guest(pair: Pair, op: Op) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: pair.guest,
        dst_port: pair.host,
        kind: STREAM,
        op: op as u16,
        buf_alloc: 256 << 10,
        ..Header::default()
    }
}

pub(super) fn data(pair: Pair, bytes: &[u8]) -> Header {
    Header { len: bytes.len() as u32, ..from_guest(pair, Op::Data) }
}

pub(super) fn shutdown(pair: Pair, flags: u32) -> Header {
    Header { flags, ..from_guest(pair, Op::Shutdown) }
}

/// What a client can read now, and whether its end has come.
pub(super) fn read(client: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => (bytes, false),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => (bytes, true),
        Err(error) => panic!("{error}"),
    }
}

/// The operations and payloads of `packets`, which are all of `pair`.
pub(super) fn ops(packets: &[(Header, Vec<u8>)], pair: Pair) -> Vec<Op> {
    assert!(packets.iter().all(|(header, _)| (header.src_port, header.dst_port) == (pair.host, pair.guest)));
    packets.iter().map(|(header, _)| Op::new(header.op).unwrap()).collect()
}

/// Bytes that show where they come from.
pub(super) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
