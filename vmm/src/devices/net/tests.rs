//! The device before a network that lets one look at the frames; what the engine does with them is tested where it is.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use net::engine::Counters;
use net::wire::{Checksum, Features, Gso, MAX_FRAME, Offload, Wire};
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::driver::{Buffer, Driver};
use crate::devices::{Worker, borrow};

/// Keeps what the guest sends, and sends what it is given.
struct Recorder {
    event: Arc<EventFd>,
    shared: Arc<Mutex<Shared>>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Shared {
    features: Option<Features>,
    received: Vec<(Vec<u8>, Offload)>,
    to_send: VecDeque<(Vec<u8>, Offload)>,
    /// Sends without asking whether there is room.
    rude: bool,
}

impl Network for Recorder {
    fn fd(&self) -> BorrowedFd<'_> {
        borrow(&self.event)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn attach(&mut self, features: Features) {
        self.shared.lock().unwrap().features = Some(features);
    }

    fn detach(&mut self) {
        self.shared.lock().unwrap().features = None;
    }

    fn receive(&mut self, frame: &[u8], offload: Offload) {
        self.shared.lock().unwrap().received.push((frame.to_vec(), offload));
    }

    fn run(&mut self, wire: &mut dyn Wire) {
        let _ = self.event.read();
        let mut shared = self.shared.lock().unwrap();
        while let Some((frame, offload)) = shared.to_send.pop_front() {
            if !shared.rude && !wire.has_room(frame.len()) {
                return shared.to_send.push_front((frame, offload));
            }
            wire.send(&frame, offload);
        }
    }

    fn configure(&mut self, _: Setting) -> Result<(), DeviceError> {
        Ok(())
    }
}

struct Guest {
    worker: Worker,
    driver: Driver,
    event: Arc<EventFd>,
    shared: Arc<Mutex<Shared>>,
    counters: Arc<Counters>,
}

impl Guest {
    fn new() -> Self {
        Self::without(&[])
    }

    fn without(features: &[u32]) -> Self {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (shared, counters) = <(Arc<Mutex<Shared>>, Arc<Counters>)>::default();
        let recorder =
            Recorder { event: event.clone(), shared: shared.clone(), counters: Arc::clone(&counters) };
        let device = Net::new(recorder);
        let driver = features.iter().fold(Driver::new(&device.info()), |driver, &f| driver.without(f));
        let worker = Worker::spawn("net", vec![Box::new(device)], || Ok(())).unwrap();
        worker.activate(0, driver.activate()).unwrap();
        Self { worker, driver, event, shared, counters }
    }

    /// Returns when the worker has seen all that was told to it before.
    fn barrier(&self) {
        for _ in 0..2 {
            self.worker.pause().unwrap();
            self.worker.resume().unwrap();
        }
    }

    fn send(&mut self, buffers: &[&[u8]]) {
        let buffers: Vec<_> = buffers.iter().map(|bytes| Buffer::Out(bytes)).collect();
        self.driver.offer(TX, &buffers);
        self.driver.notify(TX);
        self.barrier();
        assert_eq!(self.driver.taken(TX), [0]);
    }

    fn received(&self) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut self.shared.lock().unwrap().received)
    }

    fn give(&self, frames: impl IntoIterator<Item = (Vec<u8>, Offload)>) {
        self.shared.lock().unwrap().to_send.extend(frames);
        self.event.write(1).unwrap();
        self.barrier();
    }

    fn dropped(&self) -> u64 {
        self.counters.dropped.load(Ordering::Relaxed)
    }

    fn is_broken(&self) -> bool {
        self.driver.interrupt.reset_is_needed()
    }
}

/// A header of the guest: flags, GSO type, size of segments, start and offset of the checksum.
fn header(flags: u8, kind: u8, size: u16, start: u16, offset: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = flags;
    header[1] = kind;
    // A hint, and a wrong one.
    header[2..4].copy_from_slice(&u16::MAX.to_le_bytes());
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    header
}

/// Ethernet, IPv4 and TCP with a header of 32 bytes, and `payload` bytes.
fn segment(payload: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..66 + payload).map(|index| index as u8).collect();
    frame[46] = 8 << 4;
    frame
}

fn plain(frame: &[u8]) -> (Vec<u8>, Offload) {
    (frame.to_vec(), Offload::default())
}

#[test]
fn the_driver_is_told_of_the_addresses() {
    let guest = Guest::new();
    let mut config = [0; 12];
    Net::new(Recorder { event: guest.event.clone(), shared: Arc::default(), counters: Arc::default() })
        .config()
        .read(0, &mut config);
    assert_eq!(config[..6], GUEST_MAC);
    assert_eq!(config[10..], MTU.to_le_bytes());
    let all = Features { checksum: true, tso4: true, tso6: true };
    assert_eq!(guest.shared.lock().unwrap().features, Some(all));
    // Segments without checksums are not taken, whatever the driver says.
    let guest = Guest::without(&[VIRTIO_NET_F_GUEST_CSUM]);
    assert_eq!(guest.shared.lock().unwrap().features, Some(Features::default()));
    guest.worker.deactivate(0).unwrap();
    assert_eq!(guest.shared.lock().unwrap().features, None);
}

#[test]
fn frames_arrive_however_they_lie() {
    let mut guest = Guest::new();
    let frame = segment(100);
    let whole = [&header(0, 0, 0, 0, 0)[..], &frame].concat();
    guest.send(&[&whole]);
    guest.send(&[&whole[..HEADER], &whole[HEADER..]]);
    guest.send(&[&whole[..5], &whole[5..13], &[], &whole[13..]]);
    assert_eq!(guest.received(), [plain(&frame), plain(&frame), plain(&frame)]);
    // The longest one, and one byte more.
    let long = vec![7; HEADER + MAX_FRAME];
    guest.send(&[&header(0, 0, 0, 0, 0), &long[HEADER..]]);
    assert_eq!(guest.received(), [plain(&long[HEADER..])]);
    guest.send(&[&header(0, 0, 0, 0, 0), &long[HEADER - 1..]]);
    assert_eq!((guest.received().len(), guest.dropped()), (0, 1));
}

#[test]
fn what_is_left_to_the_device_is_told() {
    let mut guest = Guest::new();
    let frame = segment(3000);
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    for (kind, v6) in [(1, false), (4, true)] {
        guest.send(&[&header(1, kind, 1448, 34, 16), &frame]);
        let gso = Some(Gso { v6, size: NonZeroU16::new(1448).unwrap(), header: 66 });
        assert_eq!(guest.received(), [(frame.clone(), Offload { checksum, gso })]);
    }
    // DATA_VALID is none of the guest's, and unknown flags are to be ignored.
    guest.send(&[&header(0xfe, 0, 0, 0, 0), &frame]);
    assert_eq!(guest.received(), [plain(&frame)]);
    assert_eq!(guest.dropped(), 0);
}

#[test]
fn headers_that_make_no_sense_are_dropped() {
    let mut guest = Guest::new();
    let frame = segment(100);
    let end = frame.len() as u16;
    let bad = [
        header(1, 0, 0, end - 17, 16),       // the checksum lies behind the end
        header(1, 0, 0, 13, 16),             // in the Ethernet header
        header(1, 0, 0, u16::MAX, u16::MAX), //
        header(1, 1, 0, 34, 16),             // segments of nothing
        header(0, 1, 1448, 34, 16),          // segments without a checksum
        header(1, 3, 1448, 34, 16),          // UDP fragments
        header(1, 0x81, 1448, 34, 16),       // ECN
        header(1, 1, 1448, end - 16, 0),     // a TCP header that ends behind the frame
        header(1, 1, 1448, 35, 16),          // a TCP header that is shorter than one
    ];
    for header in &bad {
        guest.send(&[header, &frame]);
    }
    guest.send(&[&header(0, 0, 0, 0, 0)]);
    guest.send(&[&[0; 3]]);
    assert_eq!((guest.received().len(), guest.dropped()), (0, bad.len() as u64 + 2));
    // And what was not agreed on.
    let mut guest = Guest::without(&[VIRTIO_NET_F_HOST_TSO4]);
    guest.send(&[&header(1, 1, 1448, 34, 16), &frame]);
    guest.send(&[&header(1, 4, 1448, 34, 16), &frame]);
    assert_eq!((guest.received().len(), guest.dropped()), (1, 1));
    let mut guest = Guest::without(&[VIRTIO_NET_F_CSUM]);
    guest.send(&[&header(1, 0, 0, 34, 16), &frame]);
    assert_eq!((guest.received().len(), guest.dropped()), (0, 1));
    assert!(!guest.is_broken());
}

#[test]
fn a_frame_spans_several_buffers() {
    let mut guest = Guest::new();
    let chains: Vec<_> = (0..5).map(|_| guest.driver.offer(RX, &[Buffer::In(20), Buffer::In(80)])).collect();
    let frame = segment(200);
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    let gso = Some(Gso { v6: false, size: NonZeroU16::new(1448).unwrap(), header: 66 });
    guest.give([(frame.clone(), Offload { checksum, gso }), plain(&frame[..60])]);
    assert_eq!(guest.driver.taken(RX), [100, 100, 78, 72]);
    let mut bytes = Vec::new();
    for chain in &chains {
        bytes.extend([guest.driver.bytes(chain[0], 20), guest.driver.bytes(chain[1], 80)].concat());
    }
    assert_eq!(bytes[..HEADER], [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
    assert_eq!(bytes[HEADER..278], frame);
    assert!(bytes[278..300].iter().all(|&byte| byte == 0xa5));
    assert_eq!(bytes[300..312], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bytes[312..372], frame[..60]);
    assert_eq!(guest.dropped(), 0);
}

#[test]
fn a_frame_waits_for_buffers() {
    let mut guest = Guest::new();
    let frame = segment(1000);
    guest.give(vec![plain(&frame); 3]);
    assert!(guest.driver.taken(RX).is_empty());
    // Two frames are three chains each; five are there.
    for _ in 0..5 {
        guest.driver.offer(RX, &[Buffer::In(400)]);
    }
    guest.driver.notify(RX);
    guest.barrier();
    assert_eq!(guest.driver.taken(RX), [400, 400, 278]);
    guest.driver.offer(RX, &[Buffer::In(400)]);
    guest.driver.notify(RX);
    guest.barrier();
    assert_eq!(guest.driver.taken(RX), [400, 400, 278]);
    // Chains that were taken ahead are not lost by a pause, and are in what is saved.
    guest.driver.offer(RX, &[Buffer::In(400)]);
    guest.driver.notify(RX);
    guest.barrier();
    guest.worker.pause().unwrap();
    assert_eq!(guest.worker.save(0).unwrap().queues.unwrap()[RX].next_avail, 6);
    guest.worker.resume().unwrap();
    assert_eq!((guest.dropped(), guest.shared.lock().unwrap().to_send.len()), (0, 1));
}

#[test]
fn without_room_a_frame_is_dropped() {
    let mut guest = Guest::new();
    guest.driver.offer(RX, &[Buffer::In(100)]);
    guest.shared.lock().unwrap().rude = true;
    guest.give([plain(&[1; 89]), plain(&[2; 88]), plain(&[3; 10])]);
    assert_eq!(guest.driver.taken(RX), [100]);
    assert_eq!(guest.dropped(), 2);
    // Longer than any frame, and what the driver does not take.
    let mut guest = Guest::without(&[VIRTIO_NET_F_GUEST_TSO4]);
    guest.shared.lock().unwrap().rude = true;
    for _ in 0..200 {
        guest.driver.offer(RX, &[Buffer::In(512)]);
    }
    let gso = Some(Gso { v6: false, size: NonZeroU16::MIN, header: 66 });
    guest.give([plain(&vec![0; MAX_FRAME + 1]), (segment(9), Offload { gso, ..Offload::default() })]);
    assert!(guest.driver.taken(RX).is_empty());
    assert_eq!((guest.dropped(), guest.is_broken()), (2, false));
}

#[test]
fn without_mergeable_buffers_a_frame_lies_in_one() {
    let without = [VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6];
    let mut guest = Guest::without(&without);
    for _ in 0..2 {
        guest.driver.offer(RX, &[Buffer::In(12), Buffer::In(1514)]);
    }
    guest.give([plain(&[1; 1514]), plain(&[1; 60])]);
    assert_eq!(guest.driver.taken(RX), [1526, 72]);
    guest.driver.offer(RX, &[Buffer::In(100)]);
    guest.give([plain(&[1; 1514])]);
    assert!(guest.is_broken());
}

#[test]
fn one_interrupt_for_all_of_a_pass() {
    let mut guest = Guest::new();
    guest.barrier();
    let before = guest.driver.interrupt.counters().interrupts.load(Ordering::Relaxed);
    for _ in 0..100 {
        guest.driver.offer(RX, &[Buffer::In(128)]);
        guest.driver.offer(TX, &[Buffer::Out(&[0; 76])]);
    }
    // The last offer of either has asked for an interrupt at the next used buffer: position 0.
    guest.shared.lock().unwrap().to_send.extend(vec![plain(&[1; 60]); 50]);
    guest.driver.notify(TX);
    assert_eq!(guest.driver.wait(TX).len(), 100);
    assert_eq!(guest.driver.taken(RX).len(), 50);
    guest.barrier();
    let interrupts = || guest.driver.interrupt.counters().interrupts.load(Ordering::Relaxed);
    assert_eq!(interrupts() - before, 1);
    // The driver has not asked for another one since.
    guest.give(vec![plain(&[1; 60]); 50]);
    assert_eq!(interrupts() - before, 1);
    assert_eq!(guest.driver.taken(RX).len(), 50);
}

#[test]
fn broken_queues_end_the_device_alone() {
    let far = Descriptor::new(1 << 40, 100, VRING_DESC_F_WRITE as u16, 0);
    for (queue, descriptor) in [
        (RX, far),
        (RX, Descriptor::new(0x80000, 11, VRING_DESC_F_WRITE as u16, 0)),
        (RX, Descriptor::new(0x80000, 4096, 0, 0)),
        (TX, Descriptor::new(1 << 40, 100, 0, 0)),
        (TX, Descriptor::new(u64::MAX - 5, 100, 0, 0)),
    ] {
        let mut guest = Guest::new();
        guest.driver.offer_raw(queue, &[descriptor]);
        guest.shared.lock().unwrap().to_send.push_back(plain(&[1; 60]));
        guest.driver.notify(queue);
        guest.barrier();
        assert!(guest.is_broken(), "{queue}, {descriptor:?}");
        // A reset makes it whole.
        guest.worker.deactivate(0).unwrap();
        guest.driver.interrupt.set_status(0);
        let device = Net::new(Recorder {
            event: guest.event.clone(),
            shared: guest.shared.clone(),
            counters: guest.counters.clone(),
        });
        guest.driver = Driver::new(&device.info());
        guest.worker.activate(0, guest.driver.activate()).unwrap();
        let place: Vec<GuestAddress> = guest.driver.offer(RX, &[Buffer::In(128)]);
        guest.driver.notify(RX);
        guest.barrier();
        assert_eq!(guest.driver.taken(RX), [72]);
        assert_eq!(guest.driver.bytes(place[0], 72)[HEADER..], [1; 60]);
    }
}

#[test]
fn an_engine_answers_for_the_gateway() {
    let journal = Denials::default().journal();
    let device = Net::new(Engine::new(net::engine::Config::default(), journal).unwrap());
    let mut driver = Driver::new(&device.info());
    let worker = Worker::spawn("net", vec![Box::new(device)], || Ok(())).unwrap();
    worker.activate(0, driver.activate()).unwrap();
    let place = driver.offer(RX, &[Buffer::In(1536)]);
    // ARP: who has 192.0.0.1, asks 192.0.0.2.
    let mut request = vec![0xff; 6];
    request.extend(GUEST_MAC);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(GUEST_MAC);
    request.extend([192, 0, 0, 2, 0, 0, 0, 0, 0, 0, 192, 0, 0, 1]);
    driver.offer(TX, &[Buffer::Out(&[0; HEADER]), Buffer::Out(&request)]);
    driver.notify(TX);
    assert!(!driver.wait(RX).is_empty());
    let answer = driver.bytes(place[0], HEADER + 42);
    let answer = &answer[HEADER..];
    assert_eq!(answer[..6], GUEST_MAC);
    assert_eq!(answer[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    assert_eq!(answer[22..28], net::address::GATEWAY_MAC);
    // A policy of another mode is taken, also by a paused device, and by it alone.
    worker.configure(0, Setting::Policy(net::policy::Policy::default())).unwrap();
    worker.pause().unwrap();
    worker.configure(0, Setting::Limits(net::engine::Limits::default())).unwrap();
    worker.configure(0, Setting::Resolvers(Vec::new())).unwrap();
    worker.resume().unwrap();
}
