//! Guests that mean harm: everything is bounded and counted, or the driver is told that it has broken the device.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;

use super::super::connections::MAX_RESETS;
use super::super::packet::{HEADER, Header, Op, SHUTDOWN_SEND, STREAM};
use super::super::{Pair, READY_PORT};
use super::guest::{Machine, data, from_guest, ops, read, shutdown};
use crate::virtio::DeviceError;

const STRANGER: Pair = Pair { host: 9, guest: 9 };

#[test]
fn packets_of_nobody() {
    let mut machine = Machine::new();
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        machine.tell(STRANGER, op);
        assert_eq!(ops(&machine.settle(), STRANGER), [Op::Reset], "{op:?}");
    }
    machine.send(Header { op: 99, ..from_guest(STRANGER, Op::Data) }, &[]);
    assert_eq!(ops(&machine.settle(), STRANGER), [Op::Reset]);
    machine.tell(STRANGER, Op::Reset);
    assert!(machine.settle().is_empty(), "a reset is not answered");
}

#[test]
fn other_socket_types() {
    let mut machine = Machine::new();
    let pair = Pair { host: READY_PORT, guest: 1 };
    machine.send(Header { kind: 2, ..from_guest(pair, Op::Request) }, &[]);
    let packets = machine.settle();
    assert_eq!((ops(&packets, pair), packets[0].0.kind), (vec![Op::Reset], 2));
    // Nor does one of them reach a stream with the same ports.
    machine.tell(pair, Op::Request);
    assert_eq!(ops(&machine.settle(), pair), [Op::Response]);
    machine.send(Header { kind: 2, ..data(pair, b"x") }, b"x");
    machine.settle();
    assert_eq!(read(&mut machine.ready), (Vec::new(), false));
}

#[test]
fn other_cids_are_not_answered() {
    let mut machine = Machine::new();
    let pair = Pair { host: READY_PORT, guest: 1 };
    let good = from_guest(pair, Op::Request);
    for header in
        [Header { src_cid: 4, ..good }, Header { dst_cid: 1, ..good }, Header { dst_cid: 3, ..good }]
    {
        machine.send(header, &[]);
    }
    assert!(machine.settle().is_empty());
    assert_eq!(machine.device.counters().dropped.load(Relaxed), 3);
}

#[test]
fn what_does_not_belong_there_ends_a_connection() {
    for op in [Op::Request as u16, Op::Response as u16, 0, 8, u16::MAX] {
        let mut machine = Machine::new();
        let (mut client, pair) = machine.connected();
        machine.send(Header { op, ..from_guest(pair, Op::Data) }, &[]);
        assert_eq!(ops(&machine.settle(), pair), [Op::Reset], "{op}");
        assert!(read(&mut client).1);
        assert_eq!(machine.device.counters().broken.load(Relaxed), 1);
    }
    for op in [Op::Request, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        let mut machine = Machine::new();
        let (mut client, pair) = machine.requesting();
        machine.tell(pair, op);
        assert_eq!(ops(&machine.settle(), pair), [Op::Reset], "{op:?}");
        assert_eq!(read(&mut client), (Vec::new(), true));
    }
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    machine.send(shutdown(pair, SHUTDOWN_SEND), &[]);
    machine.send(data(pair, b"after the end"), b"after the end");
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    assert_eq!(read(&mut client), (Vec::new(), true));
}

#[test]
fn an_answer_to_a_request_that_the_guest_has_not_seen() {
    let mut machine = Machine::without_buffers();
    let mut client = machine.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    machine.run();
    let pair = Pair { host: 1 << 30, guest: 1024 };
    assert_eq!(machine.device.connections.find(pair), Some(pair.host));
    machine.tell(pair, Op::Response);
    assert!(machine.settle().is_empty());
    assert_eq!(read(&mut client), (Vec::new(), true));
}

#[test]
fn a_flood_of_requests_is_bounded() {
    let mut machine = Machine::without_buffers();
    for guest in 0..10_000 {
        machine.tell(Pair { host: 80, guest }, Op::Request);
    }
    let counters = machine.device.counters();
    assert_eq!(machine.device.connections.resets().count(), MAX_RESETS);
    assert_eq!(counters.refused.load(Relaxed), 10_000);
    assert_eq!(counters.dropped.load(Relaxed), 10_000 - MAX_RESETS as u64);
    let packets = machine.settle();
    assert_eq!(packets.len(), MAX_RESETS);
    assert!(packets.iter().all(|(header, _)| header.op == Op::Reset as u16 && header.kind == STREAM));
    // And the device still works.
    machine.connected();
}

#[test]
fn a_flood_of_credit_requests_is_one_answer() {
    let mut machine = Machine::without_buffers();
    machine.offer(1);
    let pair = Pair { host: READY_PORT, guest: 1 };
    machine.tell(pair, Op::Request);
    assert_eq!(ops(&machine.received(), pair), [Op::Response]);
    for _ in 0..1000 {
        machine.tell(pair, Op::CreditRequest);
    }
    assert_eq!(ops(&machine.settle(), pair), [Op::CreditUpdate]);
}

#[test]
fn buffers_that_are_not_what_they_say() {
    let long = data(STRANGER, &[0; 100]);
    for parts in [1, 3] {
        let error = Machine::new().try_send(long, &[0; 99], parts).unwrap_err();
        assert!(matches!(error, DeviceError::Driver(_)), "{error}");
    }
    let huge = Header { len: u32::MAX, ..long };
    Machine::new().try_send(huge, &[], 1).unwrap_err();
    // More payload than announced is no harm.
    Machine::new().try_send(long, &[0; 200], 2).unwrap();
    let bad = [
        // Too short for a header, outside of RAM, across its end, empty, for the device to write.
        Descriptor::new(0x20_0000, HEADER as u32 - 1, 0, 0),
        Descriptor::new(1 << 40, 64, 0, 0),
        Descriptor::new(u64::MAX - 8, 64, 0, 0),
        Descriptor::new(0x20_0000 + 128 * 0x1_2000 - 10, 64, 0, 0),
        Descriptor::new(0x20_0000, 0, 0, 0),
        Descriptor::new(0x20_0000, 64, VRING_DESC_F_WRITE as u16, 0),
        // A loop of empty buffers.
        Descriptor::new(0x20_0000, 0, VRING_DESC_F_NEXT as u16, 0),
    ];
    for descriptor in bad {
        let error = Machine::new().try_send_raw(0, descriptor).unwrap_err();
        assert!(matches!(error, DeviceError::Driver(_)), "{descriptor:?}");
    }
    Machine::new().try_send_raw(200, bad[0]).unwrap_err();
}

#[test]
fn receive_buffers_that_are_too_small() {
    let mut machine = Machine::without_buffers();
    machine.tell(STRANGER, Op::Data);
    let descriptor = Descriptor::new(0x10_0000, HEADER as u32, VRING_DESC_F_WRITE as u16, 0);
    assert!(matches!(machine.try_offer_raw(descriptor), Err(DeviceError::Driver(_))));
    let mut machine = Machine::without_buffers();
    machine.tell(STRANGER, Op::Data);
    let descriptor = Descriptor::new(0x10_0000, 4096, 0, 0);
    assert!(matches!(machine.try_offer_raw(descriptor), Err(DeviceError::Driver(_))));
}

#[test]
fn a_client_that_has_gone_keeps_no_machine_busy() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    // The guest says that it sends no more, and has room for little: what it is still to take it never takes.
    let little = Header { buf_alloc: 5, ..shutdown(pair, SHUTDOWN_SEND) };
    machine.send(little, &[]);
    client.write_all(&[1; 100]).unwrap();
    assert_eq!(ops(&machine.settle(), pair), [Op::Data, Op::CreditRequest]);
    let activity = Arc::clone(&machine.device.counters().activity);
    assert_eq!(activity.open(), 1, "the client is still there");
    drop(client);
    assert!(machine.settle().is_empty());
    assert_eq!(activity.open(), 0);
    // What the client has sent may still go, however slowly.
    for fwd_cnt in 1..4 {
        machine.send(Header { buf_alloc: 5, fwd_cnt, ..from_guest(pair, Op::CreditUpdate) }, &[]);
        assert_eq!(ops(&machine.settle(), pair), [Op::Data, Op::CreditRequest]);
        assert_eq!(activity.open(), 0);
    }

    // Nor does one whose rest the guest takes a byte at a time, each before its time is over.
    let (mut client, pair) = machine.connected();
    machine.send(Header { buf_alloc: 5, ..from_guest(pair, Op::CreditUpdate) }, &[]);
    client.write_all(&[1; 100]).unwrap();
    drop(client);
    assert_eq!(ops(&machine.settle(), pair), [Op::Data, Op::CreditRequest]);
    assert_eq!(activity.open(), 0);
}

#[test]
fn a_client_that_has_ended_its_own_direction_keeps_the_machine_busy() {
    let mut machine = Machine::new();
    let (client, pair) = machine.connected();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(ops(&machine.settle(), pair), [Op::Shutdown]);
    let activity = Arc::clone(&machine.device.counters().activity);
    assert_eq!(activity.open(), 1, "it waits for what the guest has to say");
    machine.send(shutdown(pair, SHUTDOWN_SEND), &[]);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    assert_eq!(activity.open(), 0);
}
