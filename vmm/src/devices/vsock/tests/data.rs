//! Data: credit, back-pressure, half-close, fairness.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::Pair;
use super::super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::to_host::BUFFER;
use super::guest::{Machine, data, from_guest, ops, pattern, read, shutdown};

/// Sends `bytes` as a guest that keeps to its credit, while the client reads; tells what the client has read.
fn send_all(machine: &mut Machine, client: &mut UnixStream, pair: Pair, from: u32, bytes: &[u8]) -> Vec<u8> {
    let (mut sent, mut forwarded) = (0u32, from);
    let mut got = Vec::new();
    while (sent as usize) < bytes.len() {
        let credit = BUFFER as u32 - from.wrapping_add(sent).wrapping_sub(forwarded);
        let rest = &bytes[sent as usize..];
        let part = &rest[..rest.len().min(credit as usize).min(40_000)];
        if !part.is_empty() {
            machine.send(data(pair, part), part);
            sent += part.len() as u32;
        }
        got.extend(read(client).0);
        for (header, _) in machine.settle() {
            assert_ne!(header.op, Op::Reset as u16);
            forwarded = header.fwd_cnt;
        }
    }
    got.extend(read(client).0);
    got
}

#[test]
fn bytes_go_both_ways() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    client.write_all(b"from the host").unwrap();
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair), [Op::Data]);
    assert_eq!(packets[0].1, b"from the host");
    machine.send(data(pair, b"from the guest"), b"from the guest");
    assert_eq!(read(&mut client), (b"from the guest".to_vec(), false));
    assert_eq!(machine.device.counters().opened.load(Relaxed), 1);
}

#[test]
fn payload_in_many_buffers() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    let bytes = pattern(60_000, 0);
    machine.try_send(data(pair, &bytes), &bytes, 17).unwrap();
    assert_eq!(read(&mut client), (bytes, false));
}

#[test]
fn half_close_with_1_mib_of_reply_after_the_hosts_end_of_file() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair), [Op::Data, Op::Shutdown]);
    assert_eq!(packets[1].0.flags, SHUTDOWN_SEND);
    let reply = pattern(1 << 20, 7);
    let mut got = send_all(&mut machine, &mut client, pair, 0, &reply);
    assert!(got == reply, "{} of {} bytes", got.len(), reply.len());
    machine.send(shutdown(pair, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    let (rest, end) = read(&mut client);
    got.extend(rest);
    assert!(end && got == reply);
}

#[test]
fn half_close_of_the_guest() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    machine.send(data(pair, b"last"), b"last");
    machine.send(shutdown(pair, SHUTDOWN_SEND), &[]);
    assert_eq!(read(&mut client), (b"last".to_vec(), true));
    client.write_all(b"more").unwrap();
    assert_eq!(ops(&machine.settle(), pair), [Op::Data]);
    // It takes no more either: the client's writes fail, and the connection is over.
    machine.send(shutdown(pair, SHUTDOWN_RECEIVE), &[]);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    assert_eq!(client.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_guest_that_receives_no_more_may_still_send() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    machine.send(shutdown(pair, SHUTDOWN_RECEIVE), &[]);
    assert_eq!(client.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    machine.send(data(pair, b"still"), b"still");
    assert_eq!(read(&mut client), (b"still".to_vec(), false));
    assert!(machine.settle().is_empty());
}

#[test]
fn credit_counters_wrap() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    let start = u32::MAX - 100_000;
    machine.device.connections.get_mut(pair.host).unwrap().count_from(start);
    let update = |fwd_cnt| Header { fwd_cnt, ..from_guest(pair, Op::CreditUpdate) };
    machine.send(update(start), &[]);
    let bytes = pattern(300_000, 1);
    // The guest's counter follows; to the guest first.
    let mut got = Vec::new();
    let mut written = 0;
    while got.len() < bytes.len() {
        written += client.write(&bytes[written..]).unwrap_or(0);
        for (_, payload) in machine.settle() {
            got.extend(payload);
        }
        machine.send(update(start.wrapping_add(got.len() as u32)), &[]);
    }
    assert!(got == bytes);
    let passed = start.wrapping_add(got.len() as u32);
    assert!(passed < start, "the counter has wrapped");
    // And from the guest.
    let mut client = client;
    let mut sent = 0;
    let mut told = start;
    let mut got = Vec::new();
    while sent < bytes.len() {
        let credit = BUFFER as u32 - start.wrapping_add(sent as u32).wrapping_sub(told);
        let part = &bytes[sent..bytes.len().min(sent + (credit as usize).min(10_000))];
        if !part.is_empty() {
            machine.send(Header { fwd_cnt: passed, ..data(pair, part) }, part);
            sent += part.len();
        }
        got.extend(read(&mut client).0);
        for (header, _) in machine.settle() {
            assert_eq!(header.op, Op::CreditUpdate as u16);
            told = header.fwd_cnt;
        }
    }
    got.extend(read(&mut client).0);
    assert!(got == bytes && told < start);
}

#[test]
fn credit_of_a_guest_that_makes_no_sense_is_none() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    client.write_all(&[1; 50]).unwrap();
    assert_eq!(ops(&machine.settle(), pair), [Op::Data]);
    // It has passed on more than it was sent; its buffer is smaller than what is on its way.
    for (buf_alloc, fwd_cnt) in [(1 << 20, 51), (1 << 20, u32::MAX / 2), (49, 0), (50, 0), (0, 50)] {
        machine.send(Header { buf_alloc, fwd_cnt, ..from_guest(pair, Op::CreditUpdate) }, &[]);
        client.write_all(&[1]).unwrap();
        let packets = machine.settle();
        assert!(ops(&packets, pair).iter().all(|&op| op == Op::CreditRequest), "{buf_alloc} {fwd_cnt}");
    }
    machine.send(Header { buf_alloc: u32::MAX, fwd_cnt: 50, ..from_guest(pair, Op::CreditUpdate) }, &[]);
    assert_eq!(machine.settle()[0].1, [1; 5]);
}

#[test]
fn without_credit_nothing_is_sent_and_nobody_woken() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    machine.send(Header { buf_alloc: 10, ..from_guest(pair, Op::CreditUpdate) }, &[]);
    client.write_all(&[7; 100]).unwrap();
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair), [Op::Data, Op::CreditRequest]);
    assert_eq!(packets[0].1, [7; 10]);
    let before = machine.wakeups;
    for _ in 0..100 {
        machine.turn(Duration::ZERO);
    }
    assert_eq!(machine.wakeups, before);
    machine.send(Header { buf_alloc: 10, fwd_cnt: 10, ..from_guest(pair, Op::CreditUpdate) }, &[]);
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair), [Op::Data, Op::CreditRequest]);
    assert_eq!(packets[0].1, [7; 10]);
}

#[test]
fn without_buffers_of_the_guest_nobody_is_woken() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    machine.run();
    machine.received();
    // All buffers are used up by other data, and are not made available again.
    while client.write(&[1; 4096]).is_ok() {
        machine.run();
    }
    let before = machine.wakeups;
    for _ in 0..100 {
        machine.turn(Duration::ZERO);
    }
    assert_eq!(machine.wakeups, before, "a busy loop");
    // The device has asked to be told of new buffers, and goes on with the first one.
    let first: usize = machine.received().iter().map(|(_, payload)| payload.len()).sum();
    let kicks = machine.kicks;
    machine.send(Header { fwd_cnt: first as u32, ..from_guest(pair, Op::CreditUpdate) }, &[]);
    assert!(machine.received().is_empty());
    machine.offer(1);
    assert_eq!(machine.kicks, kicks + 2);
    assert_eq!(ops(&machine.received(), pair), [Op::Data]);
}

#[test]
fn back_pressure_of_a_client_that_does_not_read() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    let bytes = pattern(8 << 20, 3);
    let (mut sent, mut told) = (0, 0);
    // A guest that sends all that it may: the socket's own buffer first, then 64 KiB in the device.
    loop {
        let credit = BUFFER - (sent - told);
        if credit == 0 {
            break;
        }
        let part = &bytes[sent..sent + credit.min(16_384)];
        machine.send(data(pair, part), part);
        sent += part.len();
        assert!(machine.device.connections.get_mut(pair.host).unwrap().kept() <= BUFFER);
        for (header, _) in machine.settle() {
            assert_eq!(header.op, Op::CreditUpdate as u16);
            told = header.fwd_cnt as usize;
        }
    }
    assert!(machine.device.connections.get_mut(pair.host).unwrap().kept() > 0, "the socket took it all");
    let before = machine.wakeups;
    for _ in 0..100 {
        machine.turn(Duration::ZERO);
    }
    assert_eq!(machine.wakeups, before);
    // The guest has ended: what is kept is not lost, and the end comes behind it.
    machine.send(shutdown(pair, SHUTDOWN_SEND), &[]);
    let mut got = Vec::new();
    loop {
        let (part, end) = read(&mut client);
        got.extend(part);
        if end {
            break;
        }
        assert!(machine.turn(Duration::from_secs(20)), "nothing comes");
    }
    assert!(got == bytes[..sent]);
    assert_eq!(machine.device.connections.get_mut(pair.host).unwrap().kept(), 0);
}

#[test]
fn more_data_than_credit_ends_the_connection() {
    let mut machine = Machine::new();
    let (mut client, pair) = machine.connected();
    let bytes = pattern(BUFFER, 0);
    let mut sent = 0;
    // A guest that sends for ever; the client does not read.
    let packets = loop {
        machine.send(data(pair, &bytes), &bytes);
        sent += 1;
        assert!(sent < 100, "the device takes {sent} times 64 KiB");
        match machine.device.connections.get_mut(pair.host) {
            Some(connection) => assert!(connection.kept() <= BUFFER),
            None => break machine.settle(),
        }
        machine.settle();
    };
    assert_eq!(ops(&packets, pair), [Op::Reset]);
    assert_eq!(machine.device.counters().broken.load(Relaxed), 1);
    let (got, end) = read(&mut client);
    assert!(end && got.chunks(BUFFER).all(|chunk| chunk == &bytes[..chunk.len()]));
}

#[test]
fn connections_take_turns() {
    let mut machine = Machine::new();
    let mut first = machine.connected().0;
    let mut clients: Vec<_> = (0..4).map(|_| machine.connected().0).collect();
    machine.settle();
    // One alone uses up all buffers, and has more.
    let mut used = 0;
    while used < 128 {
        let _ = first.write(&[1; 4096]);
        machine.run();
        used += machine.received().len();
    }
    for client in &mut clients {
        client.write_all(&pattern(30_000, 0)).unwrap();
    }
    machine.run();
    for round in 0..5 {
        machine.offer(4);
        let mut ports: Vec<u32> = machine.received().iter().map(|(header, _)| header.src_port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 4, "round {round}");
    }
}

#[test]
fn an_exec_costs_few_notifications() {
    let mut machine = Machine::new();
    machine.settle();
    let kicks = machine.kicks;
    machine.interrupts();
    let (mut client, pair) = machine.connected();
    client.write_all(&[1; 3000]).unwrap();
    assert_eq!(ops(&machine.settle(), pair), [Op::Data]);
    machine.send(data(pair, &[2; 300]), &[2; 300]);
    machine.send(shutdown(pair, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    assert_eq!(read(&mut client), (vec![2; 300], true));
    // RESPONSE, data, SHUTDOWN.
    assert_eq!(machine.kicks - kicks, 3);
    // REQUEST, RESPONSE is used, data, data is used, and at once: SHUTDOWN is used and RST.
    assert_eq!(machine.interrupts(), 5);
}

#[test]
fn a_burst_is_one_interrupt() {
    let mut machine = Machine::new();
    let (mut client, _) = machine.connected();
    machine.settle();
    machine.interrupts();
    client.write_all(&pattern(100_000, 0)).unwrap();
    machine.run();
    assert_eq!(machine.received().iter().map(|(_, payload)| payload.len()).sum::<usize>(), 100_000);
    assert_eq!(machine.interrupts(), 1);
}
