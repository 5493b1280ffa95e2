//! Connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::{RecvError, State};

use super::{ALL, Limits, World, config, policy, seen_by_guest};
use crate::wire::Features;

const NONE: Features = Features { checksum: false, tso4: false, tso6: false };
const CHECKSUM: Features = Features { checksum: true, tso4: false, tso6: false };

fn listen(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = seen_by_guest(listener.local_addr().unwrap());
    (listener, address)
}

/// Bytes that differ wherever one looks.
fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

#[test]
fn bytes_go_both_ways_and_each_end_closes_by_itself() {
    let (listener, address) = listen("127.0.0.1:0");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"the guest's last word");
        stream.write_all(b"the host's, after it").unwrap();
    });
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    world.socket(socket).send_slice(b"the guest's last word").unwrap();
    world.socket(socket).close();
    let mut got = Vec::new();
    world.until("the answer", |world| {
        let socket = world.socket(socket);
        let _ = socket.recv(|bytes| {
            got.extend_from_slice(bytes);
            (bytes.len(), ())
        });
        matches!(socket.recv_slice(&mut [0]), Err(RecvError::Finished))
    });
    server.join().unwrap();
    assert_eq!(got, b"the host's, after it");
    world.until("its end", |world| world.engine.tcp.len() == 0);
    assert_eq!(world.engine.counters().connections.load(Relaxed), 1);
}

#[test]
fn the_host_may_close_first() {
    let (listener, address) = listen("127.0.0.1:0");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"all I have to say").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut world = World::new();
    let socket = world.connect(address);
    world.until("the host's end", |world| world.socket(socket).state() == State::CloseWait);
    // Long after the host has ended, and more than fits anywhere.
    let mut sent = 0;
    world.until("all sent", |world| {
        let socket = world.socket(socket);
        while sent < 3_000_000 && socket.can_send() {
            sent += socket
                .send(|buffer| {
                    let len = buffer.len().min(3_000_000 - sent);
                    for (index, byte) in buffer[..len].iter_mut().enumerate() {
                        *byte = pattern(sent + index);
                    }
                    (len, len)
                })
                .unwrap();
        }
        sent == 3_000_000
    });
    world.socket(socket).close();
    world.until("its end", |world| world.engine.tcp.len() == 0);
    let got = server.join().unwrap();
    assert_eq!(got.len(), 3_000_000);
    assert!(got.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let (listener, address) = listen("127.0.0.1:0");
    drop(listener);
    let mut world = World::new();
    let socket = world.connect(address);
    world.until("a refusal", |world| world.socket(socket).state() == State::Closed);
    assert_eq!(world.engine.tcp.len(), 0);
}

#[test]
fn a_reset_of_the_guest_is_one_for_the_host() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut stream, _) = listener.accept().unwrap();
    world.socket(socket).abort();
    world.until("its end", |world| world.engine.tcp.len() == 0);
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_of_the_host_is_one_for_the_guest() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    let (stream, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    world.until("a reset", |world| world.socket(socket).state() == State::Closed);
    assert_eq!(world.engine.tcp.len(), 0);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut stream, _) = listener.accept().unwrap();
    let mut sent = 0;
    let mut idle = 0;
    world.until("a stop", |world| {
        let before = sent;
        let socket = world.socket(socket);
        while let Ok(1..) = socket.send(|buffer| {
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = pattern(sent + index);
            }
            sent += buffer.len();
            (buffer.len(), buffer.len())
        }) {}
        idle = if sent == before { idle + 1 } else { 0 };
        idle > 20
    });
    // The guest's own buffer, the flow's, and what the host's kernel takes: 4 MiB sent and 6 MiB received at most.
    assert!(sent < 16 << 20, "{sent}");
    // Nothing of it is lost.
    world.socket(socket).close();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    world.until("its end", |world| world.socket(socket).state() == State::FinWait2 || reader.is_finished());
    world.until("the reader", |_| reader.is_finished());
    let got = reader.join().unwrap();
    assert_eq!(got.len(), sent);
    assert!(got.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let block: Vec<u8> = (0..1 << 16).map(pattern).collect();
    let (mut sent, mut idle) = (0, 0);
    world.until("a stop", |_| {
        let written = stream.write(&block[sent % block.len()..]).unwrap_or(0);
        sent += written;
        idle = if written == 0 { idle + 1 } else { 0 };
        idle > 20
    });
    assert!(sent < 16 << 20, "{sent}");
    drop(stream);
    let mut got = 0;
    world.until("the rest", |world| {
        let socket = world.socket(socket);
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    assert!(
                        bytes.iter().enumerate().all(|(at, &byte)| byte == block[(got + at) % block.len()])
                    );
                    got += bytes.len();
                    (bytes.len(), ())
                })
                .unwrap();
        }
        matches!(socket.recv_slice(&mut [0]), Err(RecvError::Finished))
    });
    assert_eq!(got, sent);
}

/// Sends `len` bytes each way at the same time.
fn transfer(config: super::Config, features: Features, listener: &str, len: usize, room: usize) -> World {
    let (listener, address) = listen(listener);
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            let bytes: Vec<u8> = (0..len).map(pattern).collect();
            writer.write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        let mut stream: TcpStream = stream;
        stream.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        got
    });
    let mut world = World::with(config, features);
    world.room = room;
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut sent, mut received) = (0, 0);
    world.until("both ways", |world| {
        let socket = world.socket(socket);
        while sent < len && socket.can_send() {
            sent += socket
                .send(|buffer| {
                    let most = buffer.len().min(len - sent);
                    for (index, byte) in buffer[..most].iter_mut().enumerate() {
                        *byte = pattern(sent + index);
                    }
                    (most, most)
                })
                .unwrap();
            if sent == len {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    assert!(
                        bytes.iter().enumerate().all(|(at, &byte)| byte == pattern(received + at)),
                        "within {} bytes of {received}",
                        bytes.len()
                    );
                    received += bytes.len();
                    (bytes.len(), ())
                })
                .unwrap();
        }
        received == len && sent == len && world.engine.tcp.len() == 0
    });
    let got = server.join().unwrap();
    assert_eq!(got.len(), len);
    assert!(got.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
    world
}

#[test]
fn much_goes_through_in_segments_that_others_cut() {
    let world = transfer(config(), ALL, "127.0.0.1:0", 64 << 20, 8 * 65549);
    assert!(world.cut);
    assert!(world.longest > 60_000);
}

#[test]
fn much_goes_through_without_offload() {
    let world = transfer(config(), NONE, "127.0.0.1:0", 8 << 20, 1 << 20);
    assert!(!world.cut);
}

#[test]
fn much_goes_through_with_checksums_alone_and_little_room() {
    let world = transfer(config(), CHECKSUM, "127.0.0.1:0", 1 << 20, 1600);
    assert!(!world.cut);
}

#[test]
fn much_goes_through_by_ipv6() {
    let world = transfer(config(), ALL, "[::1]:0", 8 << 20, 8 * 65549);
    assert!(world.cut);
    transfer(config(), NONE, "[::1]:0", 1 << 20, 1 << 20);
}

#[test]
fn connections_without_traffic_cost_nothing() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let sockets: Vec<_> = (0..10).map(|_| world.connect(address)).collect();
    let mut streams = Vec::new();
    for (index, &socket) in sockets.iter().enumerate() {
        world.until_established(socket);
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        world.until("bytes", |world| world.socket(socket).recv_queue() == 5);
        match index % 3 {
            0 => world.socket(socket).close(),
            1 => stream.shutdown(Shutdown::Write).unwrap(),
            _ => {}
        }
        streams.push(stream);
    }
    world.settle();
    assert_eq!(world.engine.tcp.len(), 10);
    // What was due before is still looked at, once.
    let wakeups = world.wakeups(Duration::from_secs(3));
    assert!(wakeups <= 3, "{wakeups}");
}

#[test]
fn a_guest_that_is_stopped_costs_next_to_nothing() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    // More than fits, into a wire without room and past a guest that is not there.
    while stream.write(&[7; 8192]).is_ok() {
        world.wakeups(Duration::ZERO);
    }
    world.wakeups(Duration::from_millis(100));
    let wakeups = world.wakeups(Duration::from_secs(3));
    assert!(wakeups < 20, "{wakeups}");
    world.room = 0;
    let wakeups = world.wakeups(Duration::from_secs(3));
    assert!(wakeups < 20, "{wakeups}");
}

#[test]
fn a_guest_keeps_to_its_rate_both_ways() {
    let rate = 4 << 20;
    let limits = Limits { bytes_per_second: NonZeroU64::new(rate), ..Limits::default() };
    let began = Instant::now();
    transfer(super::Config { limits, ..config() }, ALL, "127.0.0.1:0", 4 << 20, 1 << 20);
    let seconds = began.elapsed().as_secs_f64();
    // Less the tenth of a second that was saved up.
    assert!(seconds > 0.85, "{seconds}");
    assert!(seconds < 10.0, "{seconds}");
}

#[test]
fn a_guest_keeps_to_its_rate_of_connections() {
    let (listener, address) = listen("127.0.0.1:0");
    let limits = Limits { connections_per_second: NonZeroU32::new(10), ..Limits::default() };
    let mut world = World::with(super::Config { limits, ..config() }, ALL);
    let sockets: Vec<_> = (0..12).map(|_| world.connect(address)).collect();
    world.settle();
    assert!((10..12).contains(&world.engine.tcp.len()), "the others are dropped, and come again");
    for socket in sockets {
        world.until_established(socket);
        listener.accept().unwrap();
    }
}

#[test]
fn many_connections_at_once_are_bounded() {
    let (listener, address) = listen("127.0.0.1:0");
    let count = 300;
    let server = thread::spawn(move || {
        let streams: Vec<_> = (0..count).map(|_| listener.accept().unwrap().0).collect();
        for mut stream in streams {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    });
    let mut world = World::new();
    let sockets: Vec<_> = (0..count).map(|_| world.connect(address)).collect();
    for (index, &socket) in sockets.iter().enumerate() {
        world.until_established(socket);
        world.socket(socket).send_slice(&[index as u8]).unwrap();
    }
    for (index, &socket) in sockets.iter().enumerate() {
        let mut byte = [0];
        world.until("an echo", |world| world.socket(socket).recv_slice(&mut byte) == Ok(1));
        assert_eq!(byte, [index as u8]);
        world.socket(socket).close();
    }
    server.join().unwrap();
    world.until("their end", |world| world.engine.tcp.len() == 0);
}

#[test]
fn many_connections_without_room_wake_nobody() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    // More than have their turns in one call.
    let mut streams = Vec::new();
    let sockets: Vec<_> = (0..600)
        .map(|_| {
            let socket = world.connect(address);
            world.until_established(socket);
            streams.push(listener.accept().unwrap().0);
            socket
        })
        .collect();
    world.settle();
    world.room = 0;
    for stream in &mut streams {
        stream.write_all(b"for a guest that takes nothing").unwrap();
    }
    // What was due before is still looked at, once for each.
    world.wakeups(Duration::from_secs(2));
    let wakeups = world.wakeups(Duration::from_secs(1));
    assert!(wakeups < 50, "{wakeups}");
    world.room = 8 * super::MAX_FRAME;
    for &socket in &sockets {
        world.until("bytes", |world| world.socket(socket).recv_queue() == 30);
    }
}

#[test]
fn a_port_of_the_host_is_reached_at_the_gateway_where_it_is_listed() {
    let (listener, address) = listen("127.0.0.1:0");
    let port = address.port();
    let mut world = World::with(
        super::Config { policy: policy(&format!(r#"{{"hostPorts": [{port}]}}"#)), ..config() },
        ALL,
    );
    let socket = world.connect((crate::address::GATEWAY, port));
    world.until_established(socket);
    listener.accept().unwrap();
    let other = world.connect((crate::address::GATEWAY, if port == 1 { 2 } else { port - 1 }));
    world.until("a refusal", |world| world.socket(other).state() == State::Closed);
    let denials = world.denials.lock().unwrap();
    assert_eq!(denials.len(), 1);
    assert_eq!(denials[0].protocol, "tcp");
}

#[test]
fn a_driver_that_goes_takes_its_connections_with_it() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut stream, _) = listener.accept().unwrap();
    world.engine.detach();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    world.engine.attach(ALL);
    // What the guest still has of it is told that it is gone.
    world.socket(socket).send_slice(b"anybody?").unwrap();
    world.until("a reset", |world| world.socket(socket).state() == State::Closed);
}
