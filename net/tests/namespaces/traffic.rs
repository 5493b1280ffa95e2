//! Connections and datagrams of the guest's kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use net::wire::Features;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::load::full;
use super::place::{
    ALL, FORBIDDEN, METADATA, NO_HOST, NO_ROUTE, NONE, OTHER, PRIVATE, PUBLIC, PUBLIC6, Place, config,
};

/// Bytes in a block of the test pattern.
const BLOCK: usize = 1 << 16;

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn connect(ip: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address(ip, port), Duration::from_secs(20))?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    stream.set_write_timeout(Some(Duration::from_mins(1)))?;
    Ok(stream)
}

/// Sends `blocks` blocks of noise, and says what they hash to.
fn send(stream: &mut TcpStream, blocks: usize) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut state: u64 = 88_172_645_463_325_252;
    let mut block = vec![0; BLOCK];
    for _ in 0..blocks {
        for word in block.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        hash.update(&block);
        stream.write_all(&block).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    hash.finalize().to_vec()
}

/// Reads all there is: how much, and what it hashes to.
fn receive(stream: &mut TcpStream) -> (usize, Vec<u8>) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BLOCK];
    let mut all = 0;
    loop {
        let len = stream.read(&mut buffer).unwrap();
        if len == 0 {
            return (all, hash.finalize().to_vec());
        }
        all += len;
        hash.update(&buffer[..len]);
    }
}

/// Noise each way at once, and then a hash each way.
fn both_ways(ip: &'static str, features: Features, blocks: usize) {
    let Some(place) = Place::new(config("{}"), features) else { return };
    let ((), server) = place.serve(move |ready| {
        let listener = TcpListener::bind(address(ip, 80)).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sender = thread::spawn(move || send(&mut writer, blocks));
        let received = receive(&mut stream);
        (sender.join().unwrap(), received)
    });
    let mut stream = connect(ip, 80).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || send(&mut writer, blocks));
    let received = receive(&mut stream);
    let sent = sender.join().unwrap();
    let (host_sent, host_received) = server.join().unwrap();
    assert_eq!(received, (blocks * BLOCK, host_sent));
    assert_eq!(host_received, (blocks * BLOCK, sent));
    // But for what a kernel says to its neighbours, of which nothing is understood.
    let dropped = place.counters.dropped.load(Relaxed);
    assert!(dropped < 50, "{dropped} frames were dropped");
}

/// 64 MiB, or 1 GiB where there is time (`scripts/test --full`).
fn much() -> usize {
    if full() { 16 * 1024 } else { 1024 }
}

#[test]
fn much_goes_both_ways_by_ipv4() {
    both_ways(PUBLIC, ALL, much());
}

#[test]
fn much_goes_both_ways_by_ipv6() {
    both_ways(PUBLIC6, ALL, much());
}

#[test]
fn much_goes_both_ways_without_offload() {
    both_ways(PUBLIC, NONE, 256);
    both_ways(PUBLIC6, NONE, 256);
}

#[test]
fn connect_fails_as_it_would_on_the_host() {
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let began = Instant::now();
    let errno = |ip: &str, port| connect(ip, port).unwrap_err().raw_os_error().unwrap();
    assert_eq!(errno(PUBLIC, 81), Errno::CONNREFUSED.raw_os_error());
    assert_eq!(errno(PUBLIC6, 81), Errno::CONNREFUSED.raw_os_error());
    assert_eq!(errno(NO_ROUTE, 80), Errno::NETUNREACH.raw_os_error());
    assert_eq!(errno(NO_HOST, 80), Errno::HOSTUNREACH.raw_os_error());
    // The host's own EACCES; of IPv4, ICMP has no better.
    assert_eq!(errno(FORBIDDEN, 80), Errno::HOSTUNREACH.raw_os_error());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(place.denials.lock().unwrap().is_empty());
}

#[test]
fn what_is_denied_fails_at_once_and_is_told() {
    let Some(place) = Place::new(config(r#"{"deny": ["93.184.215.15", "2606:2800:21f::/48"]}"#), ALL) else {
        return;
    };
    let ((), _) = place.serve(|ready| {
        let listeners =
            [METADATA, PRIVATE, OTHER, PUBLIC6].map(|ip| TcpListener::bind(address(ip, 80)).unwrap());
        ready.send(()).unwrap();
        listeners.map(|listener| listener.accept().map(drop))
    });
    let began = Instant::now();
    for ip in [METADATA, PRIVATE, OTHER] {
        let error = connect(ip, 80).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::HOSTUNREACH.raw_os_error()), "{ip}");
    }
    let error = connect(PUBLIC6, 80).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let denials = place.denials.lock().unwrap();
    let told: Vec<_> = denials.iter().map(|denial| denial.destination.clone()).collect();
    assert_eq!(
        told,
        [format!("{METADATA}:80"), format!("{PRIVATE}:80"), format!("{OTHER}:80"), format!("[{PUBLIC6}]:80")]
    );
    assert_eq!(denials[2].rule, format!("deny: {OTHER}"));
}

#[test]
fn a_datagram_that_is_denied_fails_the_next_one() {
    let Some(_place) = Place::new(config("{}"), ALL) else { return };
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(address(PRIVATE, 123)).unwrap();
    socket.send(b"question").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let error = socket.recv(&mut [0]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::HOSTUNREACH.raw_os_error()));
}

#[test]
fn a_datagram_to_nobody_fails_the_next_one() {
    let Some(_place) = Place::new(config("{}"), ALL) else { return };
    for ip in [PUBLIC, PUBLIC6] {
        let socket = UdpSocket::bind(if ip == PUBLIC { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(address(ip, 123)).unwrap();
        socket.send(b"question").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let error = socket.recv(&mut [0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::CONNREFUSED.raw_os_error()));
    }
}

#[test]
fn a_rule_opens_a_private_address() {
    let Some(place) = Place::new(config(r#"{"mode": "allow", "allow": ["tcp:10.9.8.7:80"]}"#), ALL) else {
        return;
    };
    let ((), server) = place.serve(|ready| {
        let listener = TcpListener::bind(address(PRIVATE, 80)).unwrap();
        ready.send(()).unwrap();
        listener.accept().unwrap().0.write_all(b"hello").unwrap();
    });
    let mut got = String::new();
    connect(PRIVATE, 80).unwrap().read_to_string(&mut got).unwrap();
    assert_eq!(got, "hello");
    assert!(connect(PUBLIC, 80).is_err());
    server.join().unwrap();
}

#[test]
fn each_end_closes_by_itself() {
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let ((), server) = place.serve(|ready| {
        let listener = TcpListener::bind(address(PUBLIC, 80)).unwrap();
        ready.send(()).unwrap();
        // First the guest ends, then the host.
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        stream.write_all(format!("{got}, indeed").as_bytes()).unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"all I have to say").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        got
    });
    let mut stream = connect(PUBLIC, 80).unwrap();
    stream.write_all(b"done").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "done, indeed");

    let mut stream = connect(PUBLIC, 80).unwrap();
    got.clear();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "all I have to say");
    stream.write_all(b"and I am not done").unwrap();
    drop(stream);
    assert_eq!(server.join().unwrap(), "and I am not done");
}

#[test]
fn a_reset_is_one_at_the_other_end() {
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let reset = |stream: TcpStream| {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    };
    let ((), server) = place.serve(move |ready| {
        let listener = TcpListener::bind(address(PUBLIC, 80)).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // The second ends with what the guest has sent unread, which is a reset as well.
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream);
    });
    reset(connect(PUBLIC, 80).unwrap());
    let mut stream = connect(PUBLIC, 80).unwrap();
    stream.write_all(b"x").unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    server.join().unwrap();
}

#[test]
fn a_thousand_connections_at_once() {
    const COUNT: usize = 1000;
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let ((), server) = place.serve(|ready| {
        let listener = TcpListener::bind(address(PUBLIC, 80)).unwrap();
        ready.send(()).unwrap();
        let streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
        for mut stream in streams {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    let mut streams: Vec<_> = (0..COUNT).map(|_| connect(PUBLIC, 80).unwrap()).collect();
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&index.to_le_bytes()).unwrap();
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(usize::from_le_bytes(bytes), index);
        assert_eq!(stream.read(&mut bytes).unwrap(), 0);
    }
    server.join().unwrap();
    assert_eq!(place.counters.connections.load(Relaxed), COUNT as u64);
}

#[test]
fn five_thousand_connections_one_after_the_other() {
    const COUNT: usize = 5000;
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let ((), server) = place.serve(|ready| {
        let listener = TcpListener::bind(address(PUBLIC, 80)).unwrap();
        ready.send(()).unwrap();
        for _ in 0..COUNT {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    for index in 0..COUNT {
        let mut stream = connect(PUBLIC, 80).unwrap();
        stream.write_all(&index.to_le_bytes()).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, index.to_le_bytes());
    }
    server.join().unwrap();
    assert_eq!(place.counters.connections.load(Relaxed), COUNT as u64);
}

#[test]
fn a_server_that_does_not_read_stops_its_client_and_nobody_else() {
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let (stalled, server) = place.serve(|ready| {
        let listener = TcpListener::bind(address(PUBLIC, 80)).unwrap();
        let other = TcpListener::bind(address(OTHER, 80)).unwrap();
        let (go, went) = std::sync::mpsc::channel::<()>();
        ready.send(go).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let (mut quick, _) = other.accept().unwrap();
        let all = receive(&mut quick);
        went.recv().unwrap();
        (all, receive(&mut stream))
    });
    let mut stream = connect(PUBLIC, 80).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut hash = Sha256::new();
    let (mut sent, mut since) = (0, Instant::now());
    let block = vec![7; BLOCK];
    // Until nothing more is taken for a while.
    while since.elapsed() < Duration::from_millis(500) {
        match stream.write(&block) {
            Ok(len) => {
                hash.update(&block[..len]);
                sent += len;
                since = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < 20 << 20, "{sent} bytes were taken");
    let mut quick = connect(OTHER, 80).unwrap();
    let quick_hash = send(&mut quick, 64);
    stalled.send(()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let (all, late) = server.join().unwrap();
    assert_eq!(all, (64 * BLOCK, quick_hash));
    assert_eq!(late, (sent, hash.finalize().to_vec()));
}

#[test]
fn datagrams_and_echo_requests_are_answered() {
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    for ip in [PUBLIC, PUBLIC6] {
        let ((), server) = place.serve(move |ready| {
            let socket = UdpSocket::bind(address(ip, 123)).unwrap();
            ready.send(()).unwrap();
            let mut buffer = vec![0; 9000];
            for _ in 0..4 {
                let (len, from) = socket.recv_from(&mut buffer).unwrap();
                socket.send_to(&buffer[..len].repeat(8), from).unwrap();
            }
        });
        let socket = UdpSocket::bind(if ip == PUBLIC { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // Pieces come, and then pieces go as well.
        for len in [10, 1000, 1100, 8000] {
            let sent: Vec<u8> = (0..len).map(|at| (at / 3) as u8).collect();
            socket.send_to(&sent, address(ip, 123)).unwrap();
            let mut buffer = vec![0; 65536];
            let (got, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((got, from), (8 * len, address(ip, 123)));
            assert!(buffer[..got] == sent.repeat(8), "{ip}: {len}");
        }
        server.join().unwrap();
    }
    for ip in [PUBLIC, PUBLIC6, "192.0.0.1", "fd76:6f69:6472::1"] {
        for size in ["56", "6000"] {
            let output =
                Command::new("ping").args(["-c", "2", "-i", "0.2", "-W", "5", "-s", size, ip]).output();
            let Ok(output) = output else {
                eprintln!("not tested: there is no ping");
                return;
            };
            assert!(output.status.success(), "{ip}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
