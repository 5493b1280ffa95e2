//! A driver of virtio over MMIO that is good where it wants to be.

use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

use crate::vsock::{self, Packet};
use crate::{peek, poke};

/// The registers of the first device.
pub const WINDOW: u64 = 0xd000_0000;

const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_AVAIL: u64 = 0x90;
const QUEUE_USED: u64 = 0xa0;
pub const STATUS: u64 = 0x70;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const VERSION_1: u64 = 1 << 32;

pub const VSOCK: u32 = 19;
pub const BALLOON: u32 = 5;
pub const RNG: u32 = 4;
pub const BLOCK: u32 = 2;
pub const NET: u32 = 1;

#[derive(Clone, Copy)]
pub struct Device {
    base: u64,
}

/// Where a queue is.
#[derive(Clone, Copy)]
pub struct Place {
    pub size: u32,
    pub table: u64,
    pub avail: u64,
    pub used: u64,
}

/// All devices that there are.
pub fn devices() -> impl Iterator<Item = Device> {
    let all = (0..19).map(|number| Device { base: WINDOW + number * 0x1000 });
    all.filter(|device| device.read(0) == 0x7472_6976)
}

pub fn find(id: u32) -> Device {
    devices().find(|device| device.id() == id).expect("a device is missing")
}

impl Device {
    pub fn read(self, register: u64) -> u32 {
        peek(self.base + register)
    }

    pub fn write(self, register: u64, value: u32) {
        poke(self.base + register, value);
    }

    pub fn id(self) -> u32 {
        self.read(8)
    }

    /// How many queues it has.
    pub fn queues(self) -> u32 {
        match self.id() {
            VSOCK | BALLOON => 3,
            NET => 2,
            _ => 1,
        }
    }

    pub fn offered(self) -> u64 {
        self.write(DEVICE_FEATURES_SEL, 0);
        let low = self.read(DEVICE_FEATURES);
        self.write(DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read(DEVICE_FEATURES)) << 32
    }

    pub fn reset(self) {
        self.write(STATUS, 0);
        assert!(self.read(STATUS) == 0, "the device has not been reset");
    }

    /// Up to FEATURES_OK; tells whether the device agrees.
    pub fn negotiate(self, features: u64) -> bool {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for half in 0..2 {
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.read(STATUS) & FEATURES_OK != 0
    }

    pub fn set_queue(self, queue: u32, place: Place) {
        self.write(QUEUE_SEL, queue);
        self.write(QUEUE_NUM, place.size);
        for (register, address) in
            [(QUEUE_DESC, place.table), (QUEUE_AVAIL, place.avail), (QUEUE_USED, place.used)]
        {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
    }

    pub fn driver_ok(self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn notify(self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }
}

/// A queue that is used by the rules.
pub struct Queue {
    device: Device,
    number: u32,
    place: Place,
    sent: u16,
    seen: u16,
}

/// The place for queues and buffers that are used by the rules: nobody else gives it to a device.
pub const ORDERLY: Range<u64> = 50 << 20..60 << 20;
const SIZE: u16 = 16;

impl Queue {
    /// Of a device between FEATURES_OK and DRIVER_OK.
    pub fn new(device: Device, number: u32) -> Self {
        let base = ORDERLY.start + u64::from(number) * 0x1_0000;
        for offset in (0..0x3000).step_by(8) {
            poke(base + offset, 0_u64);
        }
        let place = Place { size: SIZE.into(), table: base, avail: base + 0x1000, used: base + 0x2000 };
        device.set_queue(number, place);
        Self { device, number, place, sent: 0, seen: 0 }
    }

    /// Offers a chain of `(address, length, writable)`; it takes four descriptors at most.
    pub fn offer(&mut self, buffers: &[(u64, u32, bool)]) {
        let head = self.sent % (SIZE / 4) * 4;
        for (index, (address, len, writable)) in (head..).zip(buffers) {
            let last = index + 1 == head + buffers.len() as u16;
            let flags = u16::from(*writable) * WRITE | u16::from(!last) * NEXT;
            descriptor(self.place.table + u64::from(index) * 16, *address, *len, flags, index + 1);
        }
        poke(self.place.avail + 4 + u64::from(self.sent % SIZE) * 2, head);
        self.sent = self.sent.wrapping_add(1);
        fence(Ordering::SeqCst);
        poke(self.place.avail + 2, self.sent);
        self.device.notify(self.number);
    }

    /// Whether the device has given back a chain since this was last true.
    pub fn took(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let took = peek::<u16>(self.place.used + 2) != self.seen;
        self.seen = self.seen.wrapping_add(took.into());
        took
    }

    /// Waits for the device to give a chain back.
    pub fn wait(&mut self) {
        while !self.took() {
            core::hint::spin_loop();
        }
    }

    /// How many chains the device has not given back.
    pub fn out(&self) -> u16 {
        self.sent.wrapping_sub(self.seen)
    }
}

pub fn descriptor(at: u64, address: u64, len: u32, flags: u16, next: u16) {
    poke(at, address);
    poke(at + 8, len);
    poke(at + 12, flags);
    poke(at + 14, next);
}

/// An Ethernet frame with an ARP request of 192.0.0.2 for 192.0.0.1.
const WHO_IS_THE_GATEWAY: [u8; 42] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0x76, 0x6f, 0x69, 0x64, 2, 8, 6, // to all, from the guest
    0, 1, 8, 0, 6, 4, 0, 1, // Ethernet, IPv4, a request
    2, 0x76, 0x6f, 0x69, 0x64, 2, 192, 0, 0, 2, // of the guest
    0, 0, 0, 0, 0, 0, 192, 0, 0, 1,
];

/// Each device works for a driver that keeps the rules, whatever was done to it before.
pub fn check_all() {
    devices().for_each(check);
}

pub fn check(device: Device) {
    let buffer = ORDERLY.start + 0x10_0000;
    assert!(device.negotiate(VERSION_1), "the device does not agree to its own features");
    let mut queues = [0, 1, 2].map(|number| (number < device.queues()).then(|| Queue::new(device, number)));
    device.driver_ok();
    let [Some(first), second, third] = &mut queues else { return };
    for offset in (0..0x1000).step_by(8) {
        poke(buffer + offset, 0_u64);
    }
    match device.id() {
        RNG => {
            first.offer(&[(buffer, 64, true)]);
            first.wait();
            assert!(peek::<u64>(buffer) != 0, "no random numbers");
        }
        BLOCK => {
            poke(buffer, 8_u32); // GET_ID
            first.offer(&[(buffer, 16, false), (buffer + 64, 20, true), (buffer + 128, 1, true)]);
            first.wait();
            assert!(&peek::<[u8; 8]>(buffer + 64) == b"voidrun\0", "another ID");
        }
        BALLOON => {
            let huge = ORDERLY.start + 0x60_0000;
            poke(huge, 7_u64);
            if let Some(third) = third {
                third.offer(&[(huge, 2 << 20, true)]);
                third.wait();
            }
            assert!(peek::<u64>(huge) == 0, "the page was not given back");
        }
        NET => {
            let (sent, received) = (buffer, buffer + 0x400);
            poke(sent, [0_u8; 12]);
            poke(sent + 12, WHO_IS_THE_GATEWAY);
            if let Some(second) = second {
                second.offer(&[(sent, 12 + WHO_IS_THE_GATEWAY.len() as u32, false)]);
            }
            // What else there is to say comes in between: an answer is of type ARP, and its operation 2.
            loop {
                first.offer(&[(received, 0x800, true)]);
                first.wait();
                let (kind, operation): ([u8; 2], [u8; 2]) = (peek(received + 24), peek(received + 32));
                if kind == [8, 6] && operation == [0, 2] {
                    break;
                }
            }
        }
        _ => {
            // A connection to a port that is nobody's is refused. What clients of the host want comes in between.
            poke(buffer, Packet { src_port: 77, dst_port: 9, op: vsock::REQUEST, ..Packet::default() });
            if let Some(second) = second {
                second.offer(&[(buffer, Packet::LEN, false)]);
            }
            loop {
                first.offer(&[(buffer + 64, 4096, true)]);
                first.wait();
                let packet: Packet = peek(buffer + 64);
                if (packet.dst_port, packet.op) == (77, vsock::RST) {
                    break;
                }
            }
        }
    }
    device.reset();
}
