//! The gateway's name server, and name servers of the host.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Instant;

use smoltcp::socket::tcp::{RecvError, State};
use smoltcp::wire::UdpPacket;

use super::super::packet::{self, Packet};
use super::{ALL, World, config};
use crate::address::{GATEWAY, GUEST};

/// A query for the IPv4 addresses of `name`.
pub(super) fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// An answer to it: `count` addresses, which follow each other.
fn answer(query: &[u8], code: u8, address: [u8; 4], count: u8) -> Vec<u8> {
    let mut message = query[..12].to_vec();
    (message[2], message[3]) = (0x81, 0x80 | code);
    message[4..12].copy_from_slice(&[0, 1, 0, count, 0, 0, 0, 0]);
    let end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    message.extend(&query[12..end]);
    for index in 0..count {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend([address[0], address[1], address[2], address[3] + index]);
    }
    message
}

/// A name server that answers `count` queries of each kind with `addresses` addresses; with more than ten, it cuts its datagrams.
pub(super) fn server(address: [u8; 4], addresses: u8, count: usize) -> SocketAddr {
    let (listener, socket) = loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()) {
            break (listener, socket);
        }
    };
    let here = listener.local_addr().unwrap();
    thread::spawn(move || {
        for _ in 0..count {
            let mut buffer = [0; 4096];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            let mut reply = answer(&buffer[..len], 0, address, addresses.min(10));
            if addresses > 10 {
                reply[2] |= 2;
            }
            socket.send_to(&reply, from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut message).unwrap();
            let reply = answer(&message, 0, address, addresses);
            // In two parts, as streams have none.
            let (first, second) = reply.split_at(7);
            stream.write_all(&(reply.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(first).unwrap();
            stream.write_all(second).unwrap();
        }
    });
    here
}

/// Asks the gateway by UDP.
pub(super) fn ask(world: &mut World, name: &str) -> Vec<u8> {
    world.packets.clear();
    let guest = SocketAddr::new(GUEST.into(), 5000);
    let gateway = SocketAddr::new(GATEWAY.into(), 53);
    world.send(&packet::udp(guest, gateway, &query(0x1234, name)).unwrap());
    world.until("an answer", |world| !world.packets.is_empty());
    let packet = Packet::parse(&world.packets[0]).unwrap();
    let udp = UdpPacket::new_checked(packet.payload).unwrap();
    assert_eq!((udp.src_port(), udp.dst_port()), (53, 5000));
    let reply = udp.payload().to_vec();
    assert_eq!(reply[..2], [0x12, 0x34]);
    reply
}

/// The addresses in a reply to a query with one label's name compressed.
fn last_address(reply: &[u8]) -> [u8; 4] {
    reply[reply.len() - 4..].try_into().unwrap()
}

fn world_with(resolvers: Vec<SocketAddr>) -> World {
    World::with(super::Config { resolvers, ..config() }, ALL)
}

#[test]
fn the_hosts_name_server_answers_and_is_asked_once() {
    let resolver = server([8, 0, 0, 7], 1, 1);
    let mut world = world_with(vec![resolver]);
    assert_eq!(last_address(&ask(&mut world, "host.example.org")), [8, 0, 0, 7]);
    // The server has gone; this comes from the cache.
    assert_eq!(last_address(&ask(&mut world, "host.example.org")), [8, 0, 0, 7]);
}

#[test]
fn another_name_server_is_asked_where_one_is_not_there() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = server([8, 0, 0, 7], 1, 1);
    let mut world = world_with(vec![closed, silent.local_addr().unwrap(), resolver]);
    let began = Instant::now();
    assert_eq!(last_address(&ask(&mut world, "host.example.org")), [8, 0, 0, 7]);
    assert!(began.elapsed().as_secs() >= 1, "the silent one had its time");
}

#[test]
fn nobody_to_ask_is_a_failure_at_once() {
    let mut world = world_with(Vec::new());
    assert_eq!(ask(&mut world, "host.example.org")[3] & 0xf, 2);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.engine.set_resolvers(vec![closed]);
    assert_eq!(ask(&mut world, "host.example.org")[3] & 0xf, 2);
}

#[test]
fn what_is_too_long_for_a_datagram_comes_by_tcp() {
    let resolver = server([8, 0, 1, 0], 100, 1);
    let mut world = world_with(vec![resolver]);
    let cut = ask(&mut world, "many.example.org");
    assert_eq!(cut[2] & 2, 2, "it says that it is cut");

    let socket = world.connect((GATEWAY, 53));
    world.until_established(socket);
    // Two queries at once, in pieces.
    let mut messages = Vec::new();
    for id in [1, 2] {
        let query = query(id, "many.example.org");
        messages.extend((query.len() as u16).to_be_bytes());
        messages.extend(query);
    }
    let (first, second) = messages.split_at(11);
    world.socket(socket).send_slice(first).unwrap();
    world.settle();
    world.socket(socket).send_slice(second).unwrap();
    world.socket(socket).close();
    let mut got = Vec::new();
    world.until("both answers", |world| {
        let socket = world.socket(socket);
        let _ = socket.recv(|bytes| {
            got.extend_from_slice(bytes);
            (bytes.len(), ())
        });
        matches!(socket.recv_slice(&mut [0]), Err(RecvError::Finished))
    });
    let len = usize::from(u16::from_be_bytes([got[0], got[1]]));
    assert_eq!(got.len(), 2 * (2 + len));
    assert_eq!(last_address(&got), [8, 0, 1, 99]);
    let ids = [got[3], got[2 + len + 3]];
    assert!(ids == [1, 2] || ids == [2, 1]);
    world.until("its end", |world| world.engine.tcp.len() == 0);
}

#[test]
fn streams_are_bounded() {
    let mut world = world_with(Vec::new());
    let sockets: Vec<_> = (0..33).map(|_| world.connect((GATEWAY, 53))).collect();
    world.settle();
    assert_eq!(world.engine.tcp.len(), 32);
    assert_eq!(world.socket(sockets[32]).state(), State::Closed);
    world.socket(sockets[0]).abort();
    world.settle();
    let another = world.connect((GATEWAY, 53));
    world.until_established(another);
}

#[test]
fn a_stream_that_says_nothing_sensible_is_reset() {
    let mut world = world_with(Vec::new());
    let socket = world.connect((GATEWAY, 53));
    world.until_established(socket);
    world.socket(socket).send_slice(&[0xff; 100]).unwrap();
    world.until("a reset", |world| world.socket(socket).state() == State::Closed);
    assert_eq!(world.engine.tcp.len(), 0);
}
