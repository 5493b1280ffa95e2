//! Streams that are joined to a port of the loopback.

use crate::host::Host;
use protocol::Request;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    server
}

fn forward(port: u16) -> UnixStream {
    Host::ask(&Request::Forward { port }).socket
}

/// A stream and the server's side of it.
fn joined() -> (UnixStream, TcpStream) {
    let (listener, port) = listener();
    let host = forward(port);
    let server = accept(&listener);
    (host, server)
}

fn all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_comes_with_the_request_is_passed_on() {
    let (listener, port) = listener();
    let mut bytes = protocol::encode(&Request::Forward { port }).unwrap();
    bytes.extend_from_slice(b"no frame at all");
    let mut host = Host::raw(&bytes).socket;
    let mut server = accept(&listener);
    host.shutdown(Shutdown::Write).unwrap();
    // One end of file does not end the other direction.
    assert_eq!(all(&server), b"no frame at all");
    server.write_all(b"answer").unwrap();
    drop(server);
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

#[test]
fn the_server_ends_first() {
    let (mut host, mut server) = joined();
    server.write_all(b"hello").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(all(&host), b"hello");
    host.write_all(b"bye").unwrap();
    drop(host);
    assert_eq!(all(&server), b"bye");
}

#[test]
fn much_both_ways_and_a_slow_reader() {
    let (mut host, server) = joined();
    let bytes: Vec<u8> = (0..8_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let echo = std::thread::spawn(move || {
        // Nothing is read until all buffers on the way are full.
        let (mut reader, mut writer) = (&server, &server);
        std::io::copy(&mut reader, &mut writer).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
    });
    let sent = bytes.clone();
    let mut writer = host.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut echoed = Vec::new();
    host.read_to_end(&mut echoed).unwrap();
    assert!(echoed == bytes);
    writing.join().unwrap();
    echo.join().unwrap();
}

#[test]
fn ipv6_where_nobody_listens_on_ipv4() {
    let Ok(listener) = TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))) else { return };
    let mut host = forward(listener.local_addr().unwrap().port());
    accept(&listener).write_all(b"six").unwrap();
    let mut three = [0; 3];
    host.read_exact(&mut three).unwrap();
    assert_eq!(&three, b"six");
}

#[test]
fn nobody_listens() {
    let (listener, port) = listener();
    drop(listener);
    assert_eq!(all(forward(port)), b"");
}

#[test]
fn who_goes_is_told_to_the_other_side() {
    // The host, with and without an end of file before.
    for half_closed in [false, true] {
        let (host, mut server) = joined();
        if half_closed {
            host.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        }
        drop(host);
        let error = (0..).find_map(|_| server.write_all(&[0; 4096]).err()).unwrap();
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    }
    // The server, in the middle of what it is sent.
    let (mut host, server) = joined();
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
    drop(server);
    let error = (0..).find_map(|_| host.write_all(&[0; 4096]).err()).unwrap();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}
