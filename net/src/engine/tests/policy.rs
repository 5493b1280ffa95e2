//! What the policy denies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use smoltcp::socket::tcp::State;

use super::dns::{ask, server};
use super::{ALL, World, config, policy, seen_by_guest};

fn world(json: &str, resolvers: Vec<SocketAddr>) -> World {
    World::with(super::Config { policy: policy(json), resolvers, ..config() }, ALL)
}

fn listen(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = seen_by_guest(listener.local_addr().unwrap());
    (listener, address)
}

fn rules(world: &World) -> Vec<String> {
    world.denials.lock().unwrap().iter().map(|denial| denial.rule.clone()).collect()
}

#[test]
fn what_is_private_fails_at_once_and_is_told() {
    let v4 = ["127.0.0.1:80", "10.0.0.1:80", "169.254.169.254:80", "192.168.1.1:80"];
    let v6 = ["[::1]:80", "[fe80::1]:80", "[::ffff:10.0.0.1]:80", "[64:ff9b::a00:1]:80"];
    for (addresses, answer) in [(v4, (3, 13)), (v6, (1, 1))] {
        for address in addresses {
            let mut world = World::new();
            let address: SocketAddr = address.parse().unwrap();
            world.connect(address);
            assert_eq!(world.until_unreachable(), answer, "{address}");
            assert_eq!(world.denials.lock().unwrap()[0].destination, address.to_string());
            assert_eq!(world.engine.tcp.len(), 0);
        }
    }
}

#[test]
fn a_flood_of_denials_does_not_flood_the_journal() {
    let mut world = World::new();
    let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
    for _ in 0..500 {
        world.connect(address);
        world.settle();
    }
    let counters = world.engine.counters();
    assert_eq!(counters.denied.load(std::sync::atomic::Ordering::Relaxed), 500);
    let told = rules(&world).len();
    assert!((64..300).contains(&told), "{told}");
}

#[test]
fn a_connection_ends_when_it_is_not_allowed_any_more() {
    let (listener, address) = listen("127.0.0.1:0");
    let (other_listener, other_address) = listen("127.0.0.2:0");
    let mut world = World::new();
    let ended = world.connect(address);
    let kept = world.connect(other_address);
    world.until_established(ended);
    world.until_established(kept);
    let (mut stream, _) = listener.accept().unwrap();
    let (mut other_stream, _) = other_listener.accept().unwrap();
    world.engine.set_policy(policy(r#"{"deny": ["8.0.0.1"]}"#));
    world.until("a reset", |world| world.socket(ended).state() == State::Closed);
    assert!(stream.read(&mut [0]).is_err());
    other_stream.write_all(b"still here").unwrap();
    world.until("bytes", |world| world.socket(kept).recv_queue() == 10);
    assert_eq!(rules(&world), ["deny: 8.0.0.1"]);
}

#[test]
fn a_guest_that_takes_nothing_keeps_nothing_open() {
    let (listener, address) = listen("127.0.0.1:0");
    let mut world = World::new();
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
    world.room = 0;
    world.engine.set_policy(policy(r#"{"deny": ["8.0.0.1"]}"#));
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // The guest is told when there is room again.
    world.wakeups(std::time::Duration::from_millis(50));
    world.room = super::MAX_FRAME;
    world.until("a reset", |world| world.socket(socket).state() == State::Closed);
    world.until("its end", |world| world.engine.tcp.len() == 0);
    assert_eq!(rules(&world).len(), 1);
}

const NAMED: &str = r#"{"mode": "allow", "allow": ["good.example.org"]}"#;

/// What a client says first.
fn request(name: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").into_bytes()
}

#[test]
fn a_server_is_reached_by_the_name_that_is_allowed() {
    let (listener, address) = listen("127.0.0.7:0");
    let resolver = server([8, 0, 0, 7], 1, 1);
    let mut world = world(NAMED, vec![resolver]);
    // Its address alone is not enough, before the name was asked for.
    world.connect(address);
    assert_eq!(world.until_unreachable(), (3, 13));

    ask(&mut world, "good.example.org");
    let socket = world.connect(address);
    world.until_established(socket);
    let (mut stream, _) = listener.accept().unwrap();
    let first = request("good.example.org");
    // In two parts: no byte passes before the name is known.
    world.socket(socket).send_slice(&first[..20]).unwrap();
    world.settle();
    stream.set_nonblocking(true).unwrap();
    assert!(stream.read(&mut [0]).is_err());
    stream.set_nonblocking(false).unwrap();
    world.socket(socket).send_slice(&first[20..]).unwrap();
    world.settle();
    let mut got = vec![0; first.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, first);
}

#[test]
fn another_name_at_the_same_address_is_denied() {
    let (listener, address) = listen("127.0.0.7:0");
    let resolver = server([8, 0, 0, 7], 1, 1);
    let mut world = world(NAMED, vec![resolver]);
    ask(&mut world, "good.example.org");
    for first in [request("bad.example.org"), b"\x00\x01\x02\x03 nothing of the kind\r\n\r\n".to_vec()] {
        let socket = world.connect(address);
        world.until_established(socket);
        let (mut stream, _) = listener.accept().unwrap();
        world.socket(socket).send_slice(&first).unwrap();
        world.until("a reset", |world| world.socket(socket).state() == State::Closed);
        let mut got = Vec::new();
        assert!(stream.read_to_end(&mut got).is_err());
        assert!(got.is_empty());
    }
    assert_eq!(rules(&world).len(), 2);
}

#[test]
fn an_allowed_name_does_not_open_another_address() {
    let (_other, other_address) = listen("127.0.0.9:0");
    let resolver = server([8, 0, 0, 7], 1, 1);
    let mut world = world(NAMED, vec![resolver]);
    ask(&mut world, "good.example.org");
    world.packets.clear();
    world.connect(other_address);
    assert_eq!(world.until_unreachable(), (3, 13));
}

#[test]
fn a_client_that_names_no_server_has_ten_seconds() {
    let (listener, address) = listen("127.0.0.7:0");
    let resolver = server([8, 0, 0, 7], 1, 1);
    let mut world = world(NAMED, vec![resolver]);
    ask(&mut world, "good.example.org");
    let socket = world.connect(address);
    world.until_established(socket);
    let began = std::time::Instant::now();
    let _stream = listener.accept().unwrap();
    world.until("a reset", |world| world.socket(socket).state() == State::Closed);
    assert!(began.elapsed().as_secs() >= 9);
}

#[test]
fn names_that_are_not_allowed_are_not_asked_for() {
    let mut world = world(NAMED, Vec::new());
    let reply = ask(&mut world, "bad.example.org");
    assert_eq!(reply[3] & 0xf, 3, "no such name");
    let denials = world.denials.lock().unwrap();
    assert_eq!((&denials[0].protocol[..], &denials[0].destination[..]), ("dns", "bad.example.org"));
}
