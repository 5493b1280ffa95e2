//! UDP, ICMP and neighbours.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet, UdpPacket};

use super::super::guest_address;
use super::super::packet::{self, Packet};
use super::super::socket;
use super::{ALL, World, config, policy, seen_by_guest};
use crate::address::{BROADCAST, GATEWAY, GATEWAY_MAC, GATEWAY6, GUEST, GUEST_MAC, GUEST6};
use crate::wire::Offload;

fn listen(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let address = seen_by_guest(socket.local_addr().unwrap());
    (socket, address)
}

fn guest(port: u16) -> SocketAddr {
    SocketAddr::new(GUEST.into(), port)
}

/// The UDP datagrams that the guest has got: from where, to where, and what.
fn datagrams(world: &World) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
    let read = |packet: &Vec<u8>| {
        let packet = Packet::parse(packet).filter(|packet| packet.protocol == IpProtocol::Udp)?;
        let udp = UdpPacket::new_checked(packet.payload).unwrap();
        assert!(udp.verify_checksum(&packet.source.into(), &packet.destination.into()));
        Some((
            SocketAddr::new(packet.source, udp.src_port()),
            SocketAddr::new(packet.destination, udp.dst_port()),
            udp.payload().to_vec(),
        ))
    };
    world.packets.iter().filter_map(read).collect()
}

#[test]
fn datagrams_go_both_ways_from_one_port() {
    let (first, first_address) = listen("127.0.0.1:0");
    let (second, second_address) = listen("127.0.0.2:0");
    let mut world = World::new();
    let mut buffer = [0; 100];
    for (socket, address) in [(&first, first_address), (&second, second_address)] {
        world.send(&packet::udp(guest(5000), address, b"question").unwrap());
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"question");
        socket.send_to(b"answer", from).unwrap();
    }
    world.until("both answers", |world| datagrams(world).len() == 2);
    assert!(datagrams(&world).contains(&(first_address, guest(5000), b"answer".to_vec())));
    assert!(datagrams(&world).contains(&(second_address, guest(5000), b"answer".to_vec())));
    assert_eq!(world.engine.datagrams.len(), 1);
}

#[test]
fn nobody_answers_whom_the_guest_has_not_asked() {
    let (asked, address) = listen("127.0.0.1:0");
    let (other, _) = listen("127.0.0.1:0");
    let mut world = World::new();
    world.send(&packet::udp(guest(5000), address, b"question").unwrap());
    let (_, from) = asked.recv_from(&mut [0; 100]).unwrap();
    other.send_to(b"forged", from).unwrap();
    asked.send_to(b"true", from).unwrap();
    world.until("the answer", |world| !datagrams(world).is_empty());
    world.settle();
    assert_eq!(datagrams(&world), [(address, guest(5000), b"true".to_vec())]);
}

#[test]
fn a_port_where_nobody_listens_is_told_of() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (socket, address) = listen(address);
        drop(socket);
        let mut world = World::new();
        let guest = SocketAddr::new(guest_address(address.ip()), 5000);
        world.send(&packet::udp(guest, address, b"anybody?").unwrap());
        assert_eq!(world.until_unreachable(), if address.is_ipv4() { (3, 3) } else { (1, 4) });
        let message = Packet::parse(&world.packets[0]).unwrap();
        assert_eq!((message.source, message.destination), (address.ip(), guest.ip()));
        // What is quoted is that of the datagram: its ports are behind its header.
        let quoted = &message.payload[8..];
        let ports = if address.is_ipv4() { &quoted[20..24] } else { &quoted[40..44] };
        assert_eq!(ports, [5000_u16.to_be_bytes(), address.port().to_be_bytes()].concat());
    }
}

/// Puts the pieces together that the guest has got: what is behind the IP headers.
fn whole(world: &World, len: usize) -> Vec<u8> {
    let mut whole = vec![0; len];
    for bytes in &world.packets {
        assert!(bytes.len() <= 1500);
        let (at, more, payload) = if bytes[0] >> 4 == 4 {
            let piece = Ipv4Packet::new_checked(&bytes[..]).unwrap();
            assert!(piece.verify_checksum());
            (usize::from(piece.frag_offset()), piece.more_frags(), piece.payload())
        } else {
            let piece = Ipv6Packet::new_checked(&bytes[..]).unwrap();
            let piece = Ipv6FragmentHeader::new_checked(&piece.payload()[2..]).unwrap();
            (usize::from(piece.frag_offset()) * 8, piece.more_frags(), &bytes[48..])
        };
        whole[at..at + payload.len()].copy_from_slice(payload);
        assert_eq!(more, at + payload.len() < len);
    }
    whole
}

#[test]
fn long_datagrams_come_in_pieces() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (socket, address) = listen(address);
        let guest = SocketAddr::new(guest_address(address.ip()), 5000);
        let mut world = World::new();
        world.send(&packet::udp(guest, address, b"much, please").unwrap());
        let (_, from) = socket.recv_from(&mut [0; 100]).unwrap();
        let long: Vec<u8> = (0..5000).map(|at| at as u8).collect();
        socket.send_to(&long, from).unwrap();
        world.until("all pieces", |world| world.packets.len() == 4);
        let whole = whole(&world, 5008);
        let udp = UdpPacket::new_checked(&whole[..]).unwrap();
        assert!(udp.verify_checksum(&address.ip().into(), &guest.ip().into()));
        assert_eq!(udp.payload(), long);
    }
}

#[test]
fn datagrams_that_come_in_pieces_are_put_together() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (socket, address) = listen(address);
        let guest = SocketAddr::new(guest_address(address.ip()), 5000);
        let mut world = World::new();
        let long: Vec<u8> = (0..60000_u32).map(|at| (at / 7) as u8).collect();
        let whole = packet::udp(guest, address, &long).unwrap();
        let pieces = packet::fragments(&whole, 1500, 7);
        assert_eq!(pieces.len(), if address.is_ipv4() { 41 } else { 42 });
        // One is missing, then none is.
        for piece in pieces[..5].iter().chain(&pieces[6..]).chain(&pieces) {
            world.send(piece);
        }
        let mut buffer = vec![0; 65536];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert!(buffer[..len] == long);
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut buffer).is_err());
        // Begun and never ended.
        for identification in 100..200 {
            world.send(&packet::fragments(&whole, 1500, identification)[0]);
        }
        socket.send_to(b"thanks", from).unwrap();
        world.until("the answer", |world| !datagrams(world).is_empty());
    }
}

#[test]
fn ports_are_bounded_and_the_longest_silent_goes_first() {
    let (socket, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let mut senders = Vec::new();
    let most = socket::bounded(1024, 1);
    for port in 1000..2100 {
        world.send(&packet::udp(guest(port), address, b"question").unwrap());
        senders.push(socket.recv_from(&mut [0; 100]).unwrap().1);
    }
    assert_eq!(world.engine.datagrams.len(), most);
    socket.send_to(b"too late", senders[0]).unwrap();
    socket.send_to(b"still there", senders[1099]).unwrap();
    world.until("the answer", |world| !datagrams(world).is_empty());
    world.settle();
    assert_eq!(datagrams(&world), [(address, guest(2099), b"still there".to_vec())]);
}

#[test]
fn what_is_denied_is_told_at_once() {
    let mut world =
        World::with(super::Config { policy: policy(r#"{"deny": ["8.0.0.9"]}"#), ..config() }, ALL);
    let address: SocketAddr = "8.0.0.9:123".parse().unwrap();
    world.send(&packet::udp(guest(5000), address, b"question").unwrap());
    assert_eq!(world.until_unreachable(), (3, 13));
    let denials = world.denials.lock().unwrap();
    assert_eq!((&denials[0].protocol[..], &denials[0].destination[..]), ("udp", "8.0.0.9:123"));
    assert_eq!(denials[0].rule, "deny: 8.0.0.9");
    assert_eq!(world.engine.datagrams.len(), 0);
}

#[test]
fn the_gateway_answers_echo_requests_and_nothing_else() {
    let mut world = World::new();
    let mut request = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    request.extend([7; 3000]);
    let request = packet::icmp(GUEST.into(), GATEWAY.into(), &request).unwrap();
    world.send(&request);
    world.until("a reply", |world| world.packets.len() == 3);
    let first = Packet::parse(&world.packets[0]).unwrap();
    assert_eq!(first.payload[..2], [0, 0]);
    assert_eq!(first.payload[4..9], [0x12, 0x34, 0, 1, 7]);
    world.packets.clear();
    world.send(&packet::udp(guest(5000), SocketAddr::new(GATEWAY.into(), 123), b"time?").unwrap());
    assert_eq!(world.until_unreachable(), (3, 3));
}

#[test]
fn echo_requests_reach_the_host_where_it_allows_that() {
    let address = "127.0.0.1:0".parse().unwrap();
    if socket::ping(&address).is_err() {
        eprintln!("not tested: this machine has no unprivileged ping sockets (net.ipv4.ping_group_range)");
        return;
    }
    let mut world = World::new();
    let request = [8, 0, 0, 0, 0x12, 0x34, 0, 7, b'x', b'y'];
    world.send(&packet::icmp(GUEST.into(), "8.0.0.1".parse().unwrap(), &request).unwrap());
    world.until("a reply", |world| !world.packets.is_empty());
    let reply = Packet::parse(&world.packets[0]).unwrap();
    assert_eq!(reply.source, IpAddr::from([8, 0, 0, 1]));
    assert_eq!(reply.payload[..2], [0, 0]);
    assert_eq!(reply.payload[4..], [0x12, 0x34, 0, 7, b'x', b'y']);
}

#[test]
fn the_gateway_is_found_and_nobody_else() {
    let mut world = World::new();
    let ask = |world: &mut World, address: [u8; 4]| {
        let mut frame = vec![0xff; 6];
        frame.extend(GUEST_MAC);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(GUEST_MAC);
        frame.extend(GUEST.octets());
        frame.extend([0; 6]);
        frame.extend(address);
        world.engine.receive(&frame, Offload::default());
        world.settle();
    };
    ask(&mut world, [192, 0, 0, 3]);
    assert!(world.packets.is_empty());
    ask(&mut world, GATEWAY.octets());
    assert_eq!(world.packets[0][6..8], [0, 2]);
    assert_eq!(world.packets[0][8..14], GATEWAY_MAC);
    assert_eq!(world.packets[0][14..18], GATEWAY.octets());
    world.packets.clear();

    let mut question = vec![135, 0, 0, 0, 0, 0, 0, 0];
    question.extend(GATEWAY6.octets());
    world.send(&packet::icmp(GUEST6.into(), "ff02::1:ff00:1".parse().unwrap(), &question).unwrap());
    world.settle();
    let answer = Packet::parse(&world.packets[0]).unwrap();
    assert_eq!(answer.destination, IpAddr::from(GUEST6));
    assert_eq!(answer.payload[0], 136);
    assert_eq!(answer.payload[26..], GATEWAY_MAC);
}

#[test]
fn other_senders_and_what_is_for_everybody_are_dropped() {
    let mut world = World::new();
    let elsewhere = "8.0.0.1:9".parse().unwrap();
    let forged = packet::udp("192.0.0.3:5000".parse().unwrap(), elsewhere, b"").unwrap();
    let everybody = packet::udp(guest(68), SocketAddr::new(BROADCAST.into(), 67), b"").unwrap();
    let group = packet::udp(guest(5353), "224.0.0.251:5353".parse().unwrap(), b"").unwrap();
    for packet in [forged, everybody, group] {
        world.send(&packet);
    }
    world.settle();
    assert!(world.packets.is_empty());
    assert_eq!(world.engine.datagrams.len(), 0);
    assert_eq!(world.engine.counters().dropped.load(Relaxed), 3);
    assert!(world.denials.lock().unwrap().is_empty());
}
