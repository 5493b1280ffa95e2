//! A driver at the registers of the entropy device, which lives on a real worker.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::GuestMemory;
use crate::devices::{Rng, Worker};

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x4000;
const SIZE: u16 = 8;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// The machine around one device.
struct Machine {
    memory: GuestMemory,
    worker: Arc<Worker>,
    transport: Transport,
}

impl Machine {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap();
        Self::over(Arc::new(memory))
    }

    fn over(memory: GuestMemory) -> Self {
        let device = Rng::new();
        let face = Face::of(&device);
        let worker = Arc::new(Worker::spawn("test", vec![Box::new(device)], || Ok(())).unwrap());
        let place = Place { worker: Arc::clone(&worker), index: 0 };
        let transport = Transport::new(face, place, memory.clone()).unwrap();
        Self { memory, worker, transport }
    }

    fn get(&mut self, register: u32) -> u32 {
        let mut word = [0xaa; 4];
        self.transport.read(register.into(), &mut word);
        u32::from_le_bytes(word)
    }

    fn set(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// Up to FEATURES_OK, with every feature that is offered.
    fn negotiate(&mut self) {
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for half in [0, 1] {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.get(VIRTIO_MMIO_DEVICE_FEATURES);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, offered);
        }
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.get(VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn set_up_queue(&mut self, avail: u64) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.set(VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, DESC),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, avail),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, USED),
        ] {
            self.set(low, address as u32);
            self.set(high, (address >> 32) as u32);
        }
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.negotiate();
        self.set_up_queue(AVAIL);
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Makes one buffer of 32 bytes available, as the `index`-th of the queue.
    fn offer(&mut self, index: u16) {
        const WRITE: u16 = 2;
        self.memory.write_obj(BUFFER, GuestAddress(DESC)).unwrap();
        self.memory.write_obj(32_u32, GuestAddress(DESC + 8)).unwrap();
        self.memory.write_obj(WRITE, GuestAddress(DESC + 12)).unwrap();
        self.memory.write_obj(0_u16, GuestAddress(AVAIL + 4 + 2 * u64::from(index % SIZE))).unwrap();
        self.memory.write_obj(index + 1, GuestAddress(AVAIL + 2)).unwrap();
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn buffer(&self) -> [u8; 32] {
        self.memory.read_obj(GuestAddress(BUFFER)).unwrap()
    }
}

#[test]
fn tells_what_it_is() {
    let mut machine = Machine::new();
    assert_eq!(machine.get(VIRTIO_MMIO_MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
    assert_eq!(machine.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(machine.get(VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(machine.get(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    machine.set(VIRTIO_MMIO_QUEUE_SEL, 7);
    assert_eq!(machine.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    machine.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.get(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    // Only words below 0x100, any width above.
    let mut byte = [0xaa];
    machine.transport.read(0, &mut byte);
    assert_eq!(byte, [0]);
    let mut long = [0xaa; 8];
    machine.transport.read(0x100, &mut long);
    assert_eq!(long, [0; 8]);
}

#[test]
fn works_from_the_first_buffer_on() {
    let mut machine = Machine::new();
    // Available before DRIVER_OK, and never notified.
    machine.offer(0);
    machine.start();
    assert_eq!(machine.used(), 1);
    assert_ne!(machine.buffer(), [0; 32]);
    assert_eq!(machine.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    assert!(machine.transport.interrupt().irqfd().read().unwrap() > 0);
    machine.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(machine.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(machine.get(VIRTIO_MMIO_QUEUE_READY), 1);

    machine.offer(1);
    machine.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    machine.set(VIRTIO_MMIO_QUEUE_NOTIFY, 99);
    // Commands are obeyed in the order of the wake-ups; after two of them the notification was seen.
    machine.worker.pause().unwrap();
    machine.worker.resume().unwrap();
    assert_eq!(machine.used(), 2);
}

#[test]
fn refuses_features_that_are_not_offered() {
    for (half, features) in [(0, 1 << 5), (1, 1 << 1 | 1), (1, 0), (2, 1)] {
        let mut machine = Machine::new();
        machine.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        machine.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        machine.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
        machine.set(VIRTIO_MMIO_DRIVER_FEATURES, features);
        machine.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(machine.get(VIRTIO_MMIO_STATUS) & FEATURES_OK, 0, "{half} {features:#x}");
    }
}

#[test]
fn queues_are_set_up_in_their_time_only() {
    let mut machine = Machine::new();
    machine.set_up_queue(AVAIL);
    assert_eq!(machine.get(VIRTIO_MMIO_QUEUE_READY), 0, "before FEATURES_OK");
    machine.start();
    machine.set(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(machine.get(VIRTIO_MMIO_QUEUE_READY), 1, "after DRIVER_OK");
    // DRIVER_OK without FEATURES_OK does not start the device.
    let mut machine = Machine::new();
    machine.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(machine.get(VIRTIO_MMIO_STATUS) & DRIVER_OK, 0);
}

#[test]
fn a_broken_queue_needs_a_reset_and_gets_it() {
    let mut machine = Machine::new();
    machine.negotiate();
    machine.set_up_queue(1 << 40);
    machine.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_ne!(machine.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0);
    assert_eq!(machine.get(VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);

    machine.start();
    assert_eq!(machine.get(VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    // More buffers than the queue has places.
    machine.memory.write_obj(100_u16, GuestAddress(AVAIL + 2)).unwrap();
    machine.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    machine.worker.pause().unwrap();
    machine.worker.resume().unwrap();
    assert_ne!(machine.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0);
    machine.memory.write_obj(0_u16, GuestAddress(AVAIL + 2)).unwrap();
    machine.offer(0);
    machine.start();
    assert_eq!(machine.used(), 1);
}

#[test]
fn nothing_is_touched_after_a_reset() {
    let mut machine = Machine::new();
    machine.start();
    machine.set(VIRTIO_MMIO_STATUS, 0);
    machine.offer(0);
    machine.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    machine.worker.pause().unwrap();
    machine.worker.resume().unwrap();
    assert_eq!(machine.used(), 0);
    assert_eq!(machine.get(VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn goes_on_where_it_was_saved() {
    let mut machine = Machine::new();
    machine.offer(0);
    machine.start();
    machine.worker.pause().unwrap();
    // Made available, and its notification lost with the process.
    machine.offer(1);
    let saved = machine.transport.save().unwrap();
    assert_eq!(saved, machine.transport.save().unwrap());
    let json = serde_json::to_vec(&saved).unwrap();

    let mut other = Machine::over(machine.memory.clone());
    other.transport.restore(serde_json::from_slice(&json).unwrap()).unwrap();
    assert_eq!(other.transport.save().unwrap(), saved);
    assert_eq!(other.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    other.worker.resume().unwrap();
    assert_eq!(other.used(), 2);
}

#[test]
fn a_state_that_is_not_sound_is_refused() {
    let mut machine = Machine::new();
    machine.start();
    machine.worker.pause().unwrap();
    let saved = serde_json::to_value(machine.transport.save().unwrap()).unwrap();
    for (pointer, value) in [
        ("/registers/driver_features", u64::MAX),
        ("/queues/0/max_size", 16),
        ("/queues/0/size", 3),
        ("/device/queues/0/avail_ring", 1 << 40),
        ("/device/queues/0/desc_table", 1),
    ] {
        let mut damaged = saved.clone();
        *damaged.pointer_mut(pointer).unwrap() = value.into();
        let damaged = serde_json::from_value(damaged).unwrap();
        let error = Machine::over(machine.memory.clone()).transport.restore(damaged).unwrap_err();
        assert!(matches!(error, DeviceError::State { device: "rng", .. }), "{pointer}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the driver does, in whatever order: it reads something, and the next driver finds a device that works.
    #[test]
    fn any_access_is_answered(
        accesses in prop::collection::vec((any::<bool>(), 0_u64..0x120, prop::collection::vec(any::<u8>(), 1..9)), 0..200)
    ) {
        let mut machine = Machine::new();
        for (write, offset, mut data) in accesses {
            if write {
                machine.transport.write(offset & !3, &data);
            } else {
                machine.transport.read(offset, &mut data);
            }
        }
        machine.set(VIRTIO_MMIO_STATUS, 0);
        machine.memory.write_slice(&vec![0; 0x5000], GuestAddress(0)).unwrap();
        machine.offer(0);
        machine.start();
        prop_assert_eq!(machine.used(), 1);
    }
}
