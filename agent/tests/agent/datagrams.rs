//! Streams whose datagrams go to a UDP port of the loopback.

use crate::host::Host;
use protocol::Request;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const LONGEST: usize = 65_507;

fn server(address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let server = UdpSocket::bind((address.into(), port)).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    server
}

fn forward(port: u16) -> UnixStream {
    let stream = Host::ask(&Request::ForwardUdp { port }).socket;
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn framed(datagram: &[u8]) -> Vec<u8> {
    [&u16::try_from(datagram.len()).unwrap().to_le_bytes()[..], datagram].concat()
}

fn next(stream: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut datagram = vec![0; u16::from_le_bytes(length).into()];
    stream.read_exact(&mut datagram).unwrap();
    datagram
}

#[test]
fn datagrams_go_both_ways_as_they_are() {
    let server = server(Ipv4Addr::LOCALHOST, 0);
    let mut host = forward(server.local_addr().unwrap().port());
    let mut bytes = vec![0; 65536];
    // In one piece, byte by byte, and one that is as long as there are any.
    host.write_all(&[framed(b"one"), framed(b""), framed(b"three")].concat()).unwrap();
    for byte in framed(b"four") {
        host.write_all(&[byte]).unwrap();
    }
    let long = vec![7; LONGEST];
    host.write_all(&framed(&long)).unwrap();
    let mut client = None;
    for wanted in [&b"one"[..], b"", b"three", b"four", &long] {
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], wanted);
        assert_eq!(*client.get_or_insert(from), from);
    }
    for answer in [&b"five"[..], b"", &long] {
        server.send_to(answer, client.unwrap()).unwrap();
        assert_eq!(next(&mut host), answer);
    }
}

#[test]
fn a_server_that_comes_later_and_one_of_ipv6_are_reached() {
    let port = server(Ipv4Addr::LOCALHOST, 0).local_addr().unwrap().port();
    let mut host = forward(port);
    let mut bytes = [0; 16];
    // Nobody is there: it is lost, and the stream goes on.
    host.write_all(&framed(b"lost")).unwrap();
    for address in [IpAddr::from(Ipv6Addr::LOCALHOST), Ipv4Addr::LOCALHOST.into()] {
        // What is told of the one before may come in between, and take a datagram with it.
        let server = server(address, port);
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let (length, from) = loop {
            assert!(Instant::now() < deadline, "{address}");
            host.write_all(&framed(b"found")).unwrap();
            match server.recv_from(&mut bytes) {
                // It was on its way still when the server came.
                Ok((length, _)) if bytes[..length] == *b"lost" => {}
                Ok(received) => break received,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        };
        assert_eq!((&bytes[..length], from.ip()), (&b"found"[..], address));
        server.send_to(b"here", from).unwrap();
        assert_eq!(next(&mut host), b"here");
    }
}

#[test]
fn what_is_no_datagram_ends_the_stream() {
    let server = server(Ipv4Addr::LOCALHOST, 0);
    let mut host = forward(server.local_addr().unwrap().port());
    host.write_all(&(LONGEST as u16 + 1).to_le_bytes()).unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}
