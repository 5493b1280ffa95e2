//! Packets of any kind, in any order.

use crate::virtio::{self, Device, ORDERLY, Queue, VERSION_1};
use crate::{Random, peek, poke};

pub const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
const DATA: u16 = 5;

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Packet {
    pub const LEN: u32 = 44;
}

/// From the guest to the host, a stream.
impl Default for Packet {
    fn default() -> Self {
        Self {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0,
            dst_port: 0,
            len: 0,
            kind: 1,
            op: 0,
            flags: 0,
            buf_alloc: 1 << 16,
            fwd_cnt: 0,
        }
    }
}

const NEEDS_RESET: u32 = 0x40;
const SENT: u64 = ORDERLY.start + 0x20_0000;
const RECEIVED: u64 = ORDERLY.start + 0x30_0000;
/// The largest payload that is sent.
const PAYLOAD: u64 = 0x1_2000;

struct Driver {
    device: Device,
    receive: Queue,
    send: Queue,
    _event: Queue,
    /// The last that the host has sent, to be answered.
    last: Packet,
}

pub fn flood(random: &mut Random, rounds: u64) {
    let device = virtio::find(virtio::VSOCK);
    let mut driver = Driver::new(device);
    for _ in 0..rounds {
        let (packet, len) = packet(random, &driver.last);
        poke(SENT, packet);
        if len < u64::from(Packet::LEN) || random.once_in(2) {
            driver.send.offer(&[(SENT, len as u32, false)]);
        } else {
            let payload = len as u32 - Packet::LEN;
            let cut = random.below(u64::from(payload) + 1) as u32;
            let rest = SENT + u64::from(Packet::LEN);
            let parts = [
                (SENT, Packet::LEN, false),
                (rest, cut, false),
                (rest + u64::from(cut), payload - cut, false),
            ];
            driver.send.offer(&parts);
        }
        if !driver.settle() {
            driver = Driver::new(device);
        }
    }
    virtio::check_all();
}

impl Driver {
    fn new(device: Device) -> Self {
        assert!(device.negotiate(VERSION_1), "vsock does not agree");
        let [receive, send, event] = [0, 1, 2].map(|number| Queue::new(device, number));
        device.driver_ok();
        Self { device, receive, send, _event: event, last: Packet::default() }
    }

    /// Receives until the device has taken what was sent; false when it takes no more before it is reset.
    fn settle(&mut self) -> bool {
        loop {
            if self.receive.took() {
                self.last = peek(RECEIVED);
            }
            if self.receive.out() < 3 {
                self.receive.offer(&[(RECEIVED, 0x1100, true)]);
            }
            if self.send.took() {
                return true;
            }
            if self.device.read(virtio::STATUS) & NEEDS_RESET != 0 {
                return false;
            }
        }
    }
}

/// A packet, and the length of the chain that it is in.
fn packet(random: &mut Random, last: &Packet) -> (Packet, u64) {
    let mut packet = Packet { op: random.below(9) as u16, ..Packet::default() };
    // Few ports, so that some meet a connection.
    packet.src_port = random.below(32) as u32;
    packet.dst_port = random.one_of(&[1024, 1024, 9]);
    match random.below(8) {
        // An answer to what came last.
        0..=3 => {
            (packet.src_port, packet.dst_port) = (last.dst_port, last.src_port);
            if last.op == REQUEST {
                packet.op = random.one_of(&[RESPONSE, RESPONSE, RST, DATA]);
            }
        }
        4 => (packet.src_port, packet.dst_port) = (random.next() as u32, random.next() as u32),
        _ => {}
    }
    match random.below(24) {
        0 => packet.src_cid = random.next(),
        1 => packet.dst_cid = random.below(4),
        2 => packet.kind = random.next() as u16,
        3 => packet.op = random.next() as u16,
        4 => packet.flags = random.next() as u32,
        5 => packet.buf_alloc = random.one_of(&[0, 1, u32::MAX]),
        6 => packet.fwd_cnt = random.next() as u32,
        _ => packet.flags = random.below(4) as u32,
    }
    let payload = match packet.op {
        DATA => random.below(PAYLOAD),
        _ if random.once_in(16) => random.below(PAYLOAD),
        _ => 0,
    };
    packet.len = match random.below(16) {
        0 => random.next() as u32,
        1 => payload.saturating_sub(1) as u32,
        2 => payload as u32 + 1,
        _ => payload as u32,
    };
    let header = if random.once_in(64) { random.below(u64::from(Packet::LEN)) } else { Packet::LEN.into() };
    (packet, header + payload)
}
