//! Connections come and go: the CONNECT line, refusal, ends of either side, deadlines, reset and restore of the device.

use std::io::{Read as _, Write as _};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::connections::{MAX_CONNECTIONS, MAX_RESETS};
use super::super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};
use super::super::{Pair, READY_PORT, Reset, VsockState};
use super::guest::{CID, Machine, data, from_guest, ops, pattern, read, shutdown};
use crate::devices::State;
use crate::virtio::{Device as _, DeviceError, Events, Saved};

#[test]
fn a_split_connect_line_is_not_an_error() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    for byte in b"CONNECT 1024" {
        client.write_all(&[*byte]).unwrap();
        assert!(machine.settle().is_empty());
    }
    // What follows the line in the same breath is data.
    client.write_all(b"\nfirst").unwrap();
    let packets = machine.settle();
    let pair = Pair { host: packets[0].0.src_port, guest: 1024 };
    assert_eq!(ops(&packets, pair), [Op::Request]);
    machine.tell(pair, Op::Response);
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair), [Op::Data]);
    assert_eq!(packets[0].1, b"first");
}

#[test]
fn other_lines_are_refused() {
    let lines: [&[u8]; 9] = [
        b"\n",
        b"CONNECT \n",
        b"CONNECT x\n",
        b"CONNECT +5\n",
        b"CONNECT 4294967296\n",
        b"connect 5\n",
        b"CONNECT 5\r\n",
        b"CONNECT 00000000000000000000000000000000005\n",
        &[0xff; 32],
    ];
    for line in lines {
        let mut machine = Machine::new();
        let mut client = machine.client();
        client.write_all(line).unwrap();
        assert!(machine.settle().is_empty());
        assert!(read(&mut client).1, "{line:?}");
        assert_eq!(machine.device.counters().refused.load(Relaxed), 1);
    }
}

#[test]
fn a_client_that_goes_without_a_word() {
    let mut machine = Machine::new();
    drop(machine.client());
    assert!(machine.settle().is_empty());
    assert_eq!(machine.device.connections.iter().count(), 0);
}

#[test]
fn the_guest_refuses() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.requesting();
    machine.tell(pair, Op::Reset);
    assert_eq!(read(&mut client), (Vec::new(), true));
    assert!(machine.settle().is_empty());
}

#[test]
fn the_host_drops_its_end() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    client.write_all(b"last words").unwrap();
    drop(client);
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair), [Op::Data, Op::Reset]);
    assert_eq!(packets[0].1, b"last words");
    // Also before the guest has answered.
    let (client, pair) = machine.requesting();
    drop(client);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
}

#[test]
fn the_host_drops_its_end_with_data_unread() {
    let mut machine = Machine::new();
    let (client, pair) = machine.connected();
    machine.send(data(pair, &[1; 1000]), &[1; 1000]);
    drop(client);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
}

#[test]
fn the_host_drops_its_end_after_half_closing() {
    let mut machine = Machine::new();
    let (client, pair) = machine.connected();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(ops(&machine.settle(), pair), [Op::Shutdown]);
    drop(client);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
}

#[test]
fn the_host_drops_its_end_and_the_guest_takes_nothing() {
    let mut machine = Machine::new();
    machine.device.patience = Duration::from_millis(20);
    let (mut client, pair) = machine.connected();
    machine.send(Header { buf_alloc: 5, ..from_guest(pair, Op::CreditUpdate) }, &[]);
    client.write_all(&[1; 100]).unwrap();
    drop(client);
    assert_eq!(ops(&machine.settle(), pair), [Op::Data, Op::CreditRequest]);
    while machine.device.counters().expired.load(Relaxed) == 0 {
        assert!(machine.turn(Duration::from_secs(20)), "nothing comes");
    }
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
}

#[test]
fn the_guest_resets() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    machine.send(data(pair, b"before"), b"before");
    machine.tell(pair, Op::Reset);
    assert_eq!(read(&mut client), (b"before".to_vec(), true));
    assert!(machine.settle().is_empty());
    assert_eq!(machine.device.connections.iter().count(), 0);
}

#[test]
fn what_was_sent_before_a_reset_is_not_lost() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    let bytes = pattern(1 << 20, 0);
    let mut sent = 0;
    while machine.device.connections.get_mut(pair.host).unwrap().kept() == 0 {
        machine.send(data(pair, &bytes[sent..sent + 8192]), &bytes[sent..sent + 8192]);
        sent += 8192;
        machine.settle();
    }
    // Linux closes like this when the client has not read everything in 8 s.
    machine.send(shutdown(pair, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    assert!(machine.settle().is_empty());
    machine.tell(pair, Op::Reset);
    // The ports are free for the guest.
    assert_eq!(machine.device.connections.find(pair), None);
    let (mut got, mut end) = (Vec::new(), false);
    while !end {
        let (part, ended) = read(&mut client);
        got.extend(part);
        end = ended;
        machine.run();
    }
    assert!(got == bytes[..sent]);
    assert_eq!(machine.device.connections.iter().count(), 0);
    assert!(machine.settle().is_empty());
}

#[test]
fn silence_expires() {
    let mut machine = Machine::new();
    // Long enough for a busy machine to finish the third connection in.
    machine.device.patience = Duration::from_secs(1);
    let mut silent = machine.client();
    silent.write_all(b"CONNE").unwrap();
    let (mut unanswered, pair) = machine.requesting();
    let (mut open, _) = machine.connected();
    while machine.device.counters().expired.load(Relaxed) < 2 {
        assert!(machine.turn(Duration::from_secs(20)), "nothing comes");
    }
    assert!(read(&mut silent).1);
    assert!(read(&mut unanswered).1);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    assert_eq!(read(&mut open), (Vec::new(), false));
    // And the timer stands still again.
    assert!(!machine.device.armed);
    assert_eq!(machine.device.counters().expired.load(Relaxed), 2);
}

#[test]
fn the_guest_joins_the_ready_stream_once() {
    let mut machine = Machine::new();
    let pair = Pair { host: READY_PORT, guest: 5000 };
    machine.tell(pair, Op::Request);
    assert_eq!(ops(&machine.settle(), pair), [Op::Response]);
    machine.send(data(pair, b"hello"), b"hello");
    assert_eq!(read(&mut machine.ready), (b"hello".to_vec(), false));
    machine.ready.write_all(b"power off").unwrap();
    let packets = machine.settle();
    assert_eq!((ops(&packets, pair), &packets[0].1[..]), (vec![Op::Data], &b"power off"[..]));
    for pair in [Pair { host: READY_PORT, guest: 5001 }, Pair { host: 22, guest: 5000 }] {
        machine.tell(pair, Op::Request);
        assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    }
    assert_eq!(machine.device.counters().refused.load(Relaxed), 2);
    assert_eq!(read(&mut machine.ready), (Vec::new(), false));
}

#[test]
fn as_many_connections_as_there_may_be_and_one_more() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let mut machine = Machine::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| machine.connected()).collect();
    let mut extra = machine.client();
    machine.run();
    assert!(read(&mut extra).1);
    assert_eq!(machine.device.counters().refused.load(Relaxed), 1);
    let pair = Pair { host: READY_PORT, guest: 5000 };
    machine.tell(pair, Op::Request);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    // All work, and all have ports of their own.
    let mut ports: Vec<u32> = clients.iter().map(|(_, pair)| pair.host).collect();
    ports.dedup();
    assert_eq!(ports.len(), MAX_CONNECTIONS);
    for (client, pair) in &mut clients {
        machine.send(data(*pair, &pair.host.to_le_bytes()), &pair.host.to_le_bytes());
        client.write_all(&pair.host.to_le_bytes()).unwrap();
        assert_eq!(read(client), (pair.host.to_le_bytes().to_vec(), false));
    }
    let packets = machine.settle();
    assert_eq!(packets.len(), MAX_CONNECTIONS);
    assert!(packets.iter().all(|(header, payload)| *payload == header.src_port.to_le_bytes()));
    // One goes, and there is room.
    clients.pop();
    machine.settle();
    machine.connected();
}

#[test]
fn a_reset_of_the_device_closes_everything() {
    let mut machine = Machine::new();
    let (mut open, pair) = machine.connected();
    let (mut requesting, _) = machine.requesting();
    let mut greeting = machine.client();
    machine.run();
    machine.device.deactivate(&Events::new(&machine.epoll, 0));
    for client in [&mut open, &mut requesting, &mut greeting] {
        assert!(read(client).1);
    }
    assert!(!machine.turn(Duration::ZERO));
    // The driver starts again, with queues of its own.
    let mut machine = machine.again();
    assert!(machine.device.connections.find(pair).is_none());
    let (_client, new) = machine.connected();
    assert_ne!(new.host, pair.host);
}

fn vsock(saved: &Saved) -> &VsockState {
    let State::Vsock(state) = &saved.device else { panic!("{saved:?}") };
    state
}

#[test]
fn a_restored_machine_resets_its_connections_and_the_source_keeps_them() {
    let mut source = Machine::new();
    let (mut client, open) = source.connected();
    let (_requesting, requested) = source.requesting();
    let ready = Pair { host: READY_PORT, guest: 7 };
    source.tell(ready, Op::Request);
    source.settle();
    // An edge that comes while the device is paused is told again.
    client.write_all(b"while paused").unwrap();
    let mut missed = Vec::with_capacity(8);
    rustix::event::epoll::wait(
        &source.epoll,
        rustix::buffer::spare_capacity(&mut missed),
        Some(&rustix::event::Timespec::default()),
    )
    .unwrap();
    assert_eq!(missed.len(), 1);
    source.device.pause().unwrap();
    let saved = source.device.save();
    assert_eq!(source.device.save(), saved);
    let pairs: Vec<Pair> = vsock(&saved).resets.iter().map(|reset| reset.pair).collect();
    assert_eq!(pairs, [ready, open, requested]);

    let mut clone = Machine::inactive();
    clone.take_memory(&source);
    let active = clone.active(saved.queues.as_ref().unwrap());
    let json = serde_json::to_string(&saved.device).unwrap();
    let state = serde_json::from_str(&json).unwrap();
    clone.device.restore(state, Some(active), &Events::new(&clone.epoll, 0)).unwrap();
    assert_eq!(clone.device.save(), saved);
    clone.resume();
    let packets = clone.received();
    let resets: Vec<_> = packets.iter().map(|(header, _)| (header.src_port, header.dst_port)).collect();
    assert!(packets.iter().all(|(header, _)| header.op == Op::Reset as u16 && header.kind == STREAM));
    assert_eq!(resets, pairs.iter().map(|pair| (pair.host, pair.guest)).collect::<Vec<_>>());
    // The agent comes back, to the clone's own stream, and clients get ports that the guest has not met.
    clone.tell(Pair { guest: 8, ..ready }, Op::Request);
    assert_eq!(ops(&clone.settle(), Pair { guest: 8, ..ready }), [Op::Response]);
    let (_client, new) = clone.connected();
    assert!(!pairs.contains(&new));

    source.resume();
    let packets = source.settle();
    assert_eq!(ops(&packets, open), [Op::Data]);
    assert_eq!(packets[0].1, b"while paused");
    source.send(data(open, b"goes on"), b"goes on");
    let mut got = [0; 7];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"goes on");
}

#[test]
fn a_state_that_is_not_sound_is_refused() {
    let good = VsockState { cid: CID, next_port: 1 << 30, resets: Vec::new() };
    let reset = Reset { pair: Pair { host: 1, guest: 1 }, kind: STREAM };
    let too_many = vec![reset; MAX_CONNECTIONS + MAX_RESETS + 1];
    let bad = [
        State::Vsock(VsockState { cid: 4, ..good.clone() }),
        State::Vsock(VsockState { next_port: 1024, ..good.clone() }),
        State::Vsock(VsockState { next_port: u32::MAX, ..good.clone() }),
        State::Vsock(VsockState { resets: too_many, ..good.clone() }),
        State::Rng(crate::devices::RngState {}),
    ];
    let mut machine = Machine::inactive();
    for state in bad {
        let error = machine.device.restore(state, None, &Events::new(&machine.epoll, 0)).unwrap_err();
        assert!(matches!(error, DeviceError::State { device: "vsock", .. }), "{error}");
    }
    machine.device.restore(State::Vsock(good), None, &Events::new(&machine.epoll, 0)).unwrap();
}
