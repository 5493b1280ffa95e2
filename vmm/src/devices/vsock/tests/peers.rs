//! Clients of published ports of UDP.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::connections::{MAX_CONNECTIONS, RESERVED};
use super::super::packet::{Header, Op};
use super::super::peers::{MAX_DATAGRAM, MAX_PEERS};
use super::super::{Pair, Published};
use super::guest::{Machine, data, from_guest, ops, pattern};
use crate::devices::Setting;
use crate::spec::{Target, Transport};
use crate::virtio::{Device as _, Events};

const GUEST: u32 = 1024;
const PREFACE: &[u8] = b"to port 53";
/// For what the host's kernel does between two of its own sockets.
const PATIENCE: Duration = Duration::from_secs(20);

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn framed(datagram: &[u8]) -> Vec<u8> {
    [&u16::try_from(datagram.len()).unwrap().to_le_bytes()[..], datagram].concat()
}

fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let length = client.recv(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

impl Machine {
    fn publish_udp(&mut self) -> SocketAddr {
        let target = Target { port: GUEST, preface: PREFACE.to_vec() };
        let port = Published::new(socket().into(), &target).unwrap();
        let (transport, address) = port.place();
        assert_eq!(transport, Transport::Udp);
        self.device.configure(Setting::Publish(port), &Events::new(&self.epoll, 0)).unwrap();
        address
    }

    /// A client whose first datagram the guest has got.
    fn peer(&mut self, address: SocketAddr, datagram: &[u8]) -> (UdpSocket, Pair) {
        let client = socket();
        client.connect(address).unwrap();
        client.send(datagram).unwrap();
        let packets = self.settle();
        let [(header, _)] = &packets[..] else { panic!("one request: {packets:?}") };
        assert_eq!((header.op, header.dst_port), (Op::Request as u16, GUEST));
        let pair = Pair { host: header.src_port, guest: GUEST };
        self.tell(pair, Op::Response);
        assert_eq!(self.bytes(pair), [PREFACE, &framed(datagram)].concat());
        (client, pair)
    }

    /// What the guest gets by one connection.
    fn bytes(&mut self, pair: Pair) -> Vec<u8> {
        let packets = self.settle();
        assert!(ops(&packets, pair).iter().all(|op| *op == Op::Data), "{packets:?}");
        packets.into_iter().flat_map(|(_, payload)| payload).collect()
    }

    fn answer(&mut self, pair: Pair, bytes: &[u8]) {
        self.send(data(pair, bytes), bytes);
        self.settle();
    }
}

#[test]
fn each_client_has_a_connection_and_gets_its_own_answers() {
    let mut machine = Machine::new();
    let address = machine.publish_udp();
    let (one, to_one) = machine.peer(address, b"one");
    let (two, to_two) = machine.peer(address, b"");
    machine.answer(to_two, &[framed(b"to two"), framed(b"")].concat());
    let frame = framed(b"to one");
    // In pieces.
    machine.answer(to_one, &frame[..1]);
    machine.answer(to_one, &frame[1..5]);
    machine.answer(to_one, &frame[5..]);
    assert_eq!(receive(&one), b"to one");
    assert_eq!((receive(&two), receive(&two)), (b"to two".to_vec(), Vec::new()));

    // The longest there are, both ways.
    let long = pattern(MAX_DATAGRAM, 7);
    one.send(&long).unwrap();
    assert_eq!(machine.bytes(to_one), framed(&long));
    let frame = framed(&long);
    let (first, second) = frame.split_at(40_000);
    machine.answer(to_one, first);
    machine.answer(to_one, second);
    assert_eq!(receive(&one), long);
    assert_eq!(machine.device.peers.len(), 2);
    one.set_nonblocking(true).unwrap();
    assert_eq!(one.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn what_the_guest_does_not_take_is_lost() {
    let mut machine = Machine::new();
    let address = machine.publish_udp();
    let (client, pair) = machine.peer(address, b"first");
    // Without credit.
    let none = Header { buf_alloc: 0, ..from_guest(pair, Op::CreditUpdate) };
    machine.send(none, &[]);
    for _ in 0..100 {
        client.send(&pattern(60_000, 1)).unwrap();
        machine.settle();
    }
    // With it, what there is are whole datagrams.
    let read = (PREFACE.len() + framed(b"first").len()) as u32;
    let mut got: Vec<u8> = Vec::new();
    loop {
        let fwd_cnt = read + got.len() as u32;
        machine.send(Header { fwd_cnt, ..from_guest(pair, Op::CreditUpdate) }, &[]);
        let packets = machine.settle();
        let more: Vec<u8> = packets.into_iter().flat_map(|(_, payload)| payload).collect();
        if more.is_empty() {
            break;
        }
        got.extend(more);
    }
    let one = framed(&pattern(60_000, 1));
    let datagrams = got.len() / one.len();
    assert!((1..20).contains(&datagrams), "{datagrams}");
    assert!(got == one.repeat(datagrams), "{}", got.len());
    client.send(b"last").unwrap();
    assert_eq!(machine.bytes(pair), framed(b"last"));
}

#[test]
fn a_guest_that_sends_what_is_no_datagram_has_ended_it() {
    let mut machine = Machine::new();
    let address = machine.publish_udp();
    let (client, pair) = machine.peer(address, b"first");
    let bytes = (MAX_DATAGRAM as u16 + 1).to_le_bytes();
    machine.send(data(pair, &bytes), &bytes);
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair).last(), Some(&Op::Reset), "{packets:?}");
    assert_eq!((machine.device.peers.len(), machine.device.counters().broken.load(Relaxed)), (0, 1));
    // The client may begin anew, as it may when the guest has closed its connection.
    client.send(b"again").unwrap();
    let packets = machine.settle();
    let pair = Pair { host: packets[0].0.src_port, guest: GUEST };
    assert_eq!(ops(&packets, pair), [Op::Request]);
    machine.tell(pair, Op::Reset);
    machine.settle();
    assert_eq!((machine.device.peers.len(), machine.device.connections.iter().count()), (0, 0));
}

#[test]
fn there_are_so_many_and_those_that_are_not_heard_of_go() {
    let mut machine = Machine::new();
    let address = machine.publish_udp();
    let (_first, to_first) = machine.peer(address, b"first");
    let (second, to_second) = machine.peer(address, b"second");
    // Heard of later than the first.
    let _more: Vec<_> = (2..MAX_PEERS).map(|_| machine.peer(address, b"more")).collect();
    second.send(b"here").unwrap();
    assert_eq!(machine.bytes(to_second), framed(b"here"));
    let last = socket();
    last.send_to(b"one more", address).unwrap();
    let (to_it, to_others): (Vec<_>, _) =
        machine.settle().into_iter().partition(|(header, _)| header.op == Op::Request as u16);
    assert_eq!(ops(&to_others, to_first), [Op::Reset]);
    machine.tell(Pair { host: to_it[0].0.src_port, guest: GUEST }, Op::Response);
    machine.settle();
    assert_eq!(machine.device.peers.len(), MAX_PEERS);

    machine.device.peers.idle = Duration::from_millis(200);
    // From now on, as it was too short for so many to join.
    machine.device.patience = Duration::from_millis(50);
    machine.device.arm(machine.device.patience);
    let activity = std::sync::Arc::clone(&machine.device.counters().activity);
    while !machine.device.peers.is_empty() {
        assert!(machine.turn(PATIENCE));
        machine.offer(usize::MAX);
        machine.received();
    }
    machine.settle();
    assert_eq!(machine.device.connections.iter().count(), 0);
    std::thread::sleep(Duration::from_millis(2));
    assert!(activity.idle() > Duration::ZERO);
}

#[test]
fn other_connections_are_not_crowded_out() {
    let mut machine = Machine::new();
    let quiet = machine.publish_udp();
    let (first, to_first) = machine.peer(quiet, b"first");
    let addresses: Vec<SocketAddr> = (0..4).map(|_| machine.publish_udp()).collect();
    let clients: Vec<UdpSocket> = (0..MAX_PEERS).map(|_| socket()).collect();
    for client in &clients {
        for address in &addresses {
            client.send_to(b"x", address).unwrap();
        }
        // Neither by those that the guest has not answered yet, nor for a moment.
        machine.turn(PATIENCE);
        assert!(machine.device.connections.iter().count() <= MAX_PEERS + 1);
    }
    machine.settle();
    assert_eq!(machine.device.peers.len(), MAX_PEERS);
    assert_eq!(machine.device.connections.iter().count(), MAX_PEERS);
    assert_eq!(machine.device.counters().refused.load(Relaxed), 0);
    // Nor are those of another port.
    first.send(b"still").unwrap();
    assert_eq!(machine.bytes(to_first), framed(b"still"));

    // Where no place is left, nobody goes for who does not get in.
    let _others: Vec<_> = (MAX_PEERS..MAX_CONNECTIONS - RESERVED).map(|_| machine.client()).collect();
    machine.settle();
    let last = socket();
    last.send_to(b"too late", quiet).unwrap();
    machine.settle();
    assert_eq!(machine.device.counters().refused.load(Relaxed), 1);
    assert_eq!(machine.device.peers.len(), MAX_PEERS);
    assert_eq!(machine.device.connections.iter().count(), MAX_CONNECTIONS - RESERVED);
}

#[test]
fn a_port_that_is_closed_takes_its_clients_with_it() {
    let mut machine = Machine::new();
    let (address, other) = (machine.publish_udp(), machine.publish_udp());
    let (client, pair) = machine.peer(address, b"first");
    machine.peer(other, b"other");
    // One of TCP at the same address is another one.
    for (transport, left) in [(Transport::Tcp, 2), (Transport::Udp, 1)] {
        let setting = Setting::Unpublish(transport, address);
        machine.device.configure(setting, &Events::new(&machine.epoll, 0)).unwrap();
        assert_eq!(machine.device.peers.len(), left);
    }
    let packets = machine.settle();
    assert_eq!(ops(&packets, pair).last(), Some(&Op::Reset), "{packets:?}");
    client.send(b"more").unwrap();
    assert_eq!(client.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);

    let (_client, _) = machine.peer(other, b"second");
    machine.device.deactivate(&Events::new(&machine.epoll, 0));
    assert!(machine.device.peers.is_empty());
    let mut machine = machine.again();
    machine.peer(other, b"third");
}
