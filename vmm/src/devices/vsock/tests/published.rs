//! Clients of published ports: TCP sockets, whose connections begin with a preface.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::net::sockopt;

use super::super::connections::{MAX_CONNECTIONS, RESERVED};
use super::super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::{Pair, Published};
use super::guest::{Machine, data, from_guest, ops, pattern, shutdown};
use crate::devices::Setting;
use crate::spec::{MAX_PORTS, MAX_PREFACE, Target, Transport};
use crate::virtio::{Device as _, DeviceError, Events};

const GUEST: u32 = 1024;
const PREFACE: &[u8] = b"to port 80";
/// For what the host's kernel does between two of its own sockets.
const PATIENCE: Duration = Duration::from_secs(20);

fn target() -> Target {
    Target { port: GUEST, preface: PREFACE.to_vec() }
}

impl Machine {
    fn publish(&mut self, listener: TcpListener) -> Result<SocketAddr, DeviceError> {
        let port = Published::new(listener.into(), &target()).unwrap();
        let (transport, address) = port.place();
        assert_eq!(transport, Transport::Tcp);
        self.device.configure(Setting::Publish(port), &Events::new(&self.epoll, 0))?;
        Ok(address)
    }

    fn unpublish(&mut self, address: SocketAddr) {
        self.device
            .configure(Setting::Unpublish(Transport::Tcp, address), &Events::new(&self.epoll, 0))
            .unwrap();
    }

    /// Runs until the device has `count` connections in all.
    fn until_opened(&mut self, count: usize) {
        while self.device.connections.iter().count() < count {
            assert!(self.turn(PATIENCE), "no client has come");
        }
    }

    /// A client that the guest has accepted and that has got nothing yet; the guest has got the preface.
    fn published_client(&mut self, address: SocketAddr) -> (TcpStream, Pair) {
        self.settle();
        let known = self.device.connections.iter().count();
        let client = connect(address);
        self.until_opened(known + 1);
        let packets = self.settle();
        let [(header, _)] = &packets[..] else { panic!("one request: {packets:?}") };
        assert_eq!((header.op, header.dst_port), (Op::Request as u16, GUEST));
        let pair = Pair { host: header.src_port, guest: GUEST };
        self.tell(pair, Op::Response);
        let packets = self.settle();
        assert_eq!(ops(&packets, pair), [Op::Data]);
        assert_eq!(packets[0].1, PREFACE);
        (client, pair)
    }

    /// What the guest gets up to the end of file.
    fn guest_reads(&mut self, pair: Pair) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            for (header, payload) in self.next() {
                bytes.extend(payload);
                let read = bytes.len() + PREFACE.len();
                match Op::new(header.op) {
                    Some(Op::Shutdown) => return bytes,
                    Some(Op::Data) => {
                        let update = from_guest(pair, Op::CreditUpdate);
                        self.send(Header { fwd_cnt: read as u32, ..update }, &[]);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Runs until the guest gets something.
    fn next(&mut self) -> Vec<(Header, Vec<u8>)> {
        loop {
            let packets = self.settle();
            if !packets.is_empty() {
                return packets;
            }
            assert!(self.turn(PATIENCE), "nothing has come");
        }
    }
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn is_reset(client: &mut TcpStream) {
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn data_both_ways_and_both_ends_of_file() {
    for ip in [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), (Ipv6Addr::LOCALHOST, 0).into()] {
        let Ok(listener) = TcpListener::bind(ip) else { continue };
        let mut machine = Machine::new();
        let address = machine.publish(listener).unwrap();
        let (mut client, pair) = machine.published_client(address);
        let bytes = pattern(300_000, 1);
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || {
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        });
        assert!(machine.guest_reads(pair) == bytes);
        let mut client = writer.join().unwrap();
        // The other direction is open.
        machine.send(data(pair, b"answer"), b"answer");
        let mut answer = [0; 6];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        machine.send(shutdown(pair, SHUTDOWN_SEND), &[]);
        assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
        assert_eq!(client.read(&mut answer).unwrap(), 0);
        assert_eq!(machine.device.connections.iter().count(), 0);
    }
}

#[test]
fn the_preface_waits_for_credit_and_comes_first() {
    let mut machine = Machine::new();
    let address = machine.publish(listener()).unwrap();
    let mut client = connect(address);
    client.write_all(b"first").unwrap();
    machine.until_opened(1);
    let packets = machine.settle();
    let pair = Pair { host: packets[0].0.src_port, guest: GUEST };
    let little = |op, fwd_cnt| Header { buf_alloc: 4, fwd_cnt, ..from_guest(pair, op) };
    machine.send(little(Op::Response, 0), &[]);
    let mut got = Vec::new();
    while got.len() < 15 {
        let new: Vec<u8> = machine.next().into_iter().flat_map(|(_, payload)| payload).collect();
        assert!(new.len() <= 4);
        got.extend(new);
        machine.send(little(Op::CreditUpdate, got.len() as u32), &[]);
    }
    assert_eq!(got, b"to port 80first");
}

#[test]
fn a_guest_that_refuses_resets() {
    let mut machine = Machine::new();
    let address = machine.publish(listener()).unwrap();
    // No program at the port of vsock.
    let mut client = connect(address);
    machine.until_opened(1);
    let pair = Pair { host: machine.settle()[0].0.src_port, guest: GUEST };
    machine.tell(pair, Op::Reset);
    is_reset(&mut client);
    // One that closes when it has seen the preface, as Linux says it.
    let (mut client, pair) = machine.published_client(address);
    machine.send(shutdown(pair, SHUTDOWN_RECEIVE | SHUTDOWN_SEND), &[]);
    assert_eq!(ops(&machine.settle(), pair), [Op::Reset]);
    is_reset(&mut client);
    // After some data, which comes before.
    let (mut client, pair) = machine.published_client(address);
    machine.send(data(pair, b"half"), b"half");
    machine.send(shutdown(pair, SHUTDOWN_RECEIVE | SHUTDOWN_SEND), &[]);
    let mut half = [0; 4];
    client.read_exact(&mut half).unwrap();
    assert_eq!(&half, b"half");
    is_reset(&mut client);
    // An end of file that was said before stays one.
    let (mut client, pair) = machine.published_client(address);
    machine.send(shutdown(pair, SHUTDOWN_SEND), &[]);
    machine.send(shutdown(pair, SHUTDOWN_RECEIVE | SHUTDOWN_SEND), &[]);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_that_resets_is_told_to_the_guest() {
    let mut machine = Machine::new();
    let address = machine.publish(listener()).unwrap();
    let (client, pair) = machine.published_client(address);
    sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let ended = machine.next();
    assert_eq!(
        ended.last().map(|(header, _)| (header.op, header.src_port)),
        Some((Op::Reset as u16, pair.host))
    );
    assert_eq!(machine.device.connections.iter().count(), 0);
}

#[test]
fn a_client_that_does_not_read_holds_up_the_guest_alone() {
    let mut machine = Machine::new();
    let address = machine.publish(listener()).unwrap();
    let (mut client, pair) = machine.published_client(address);
    let (bytes, piece) = (pattern(16 << 20, 7), 32 << 10);
    let (mut sent, mut told) = (0, 0u32);
    // The guest sends for as long as it has credit.
    let mut feed = |machine: &mut Machine, sent: &mut usize| {
        while *sent + piece <= told as usize + (64 << 10) && *sent < bytes.len() {
            machine.send(data(pair, &bytes[*sent..*sent + piece]), &bytes[*sent..*sent + piece]);
            *sent += piece;
        }
        let updates = machine.settle();
        told = updates.last().map_or(told, |(header, _)| header.fwd_cnt);
        !updates.is_empty()
    };
    while feed(&mut machine, &mut sent) {}
    assert!(sent < bytes.len(), "the host's kernel has taken everything");
    let kept: usize = machine.device.connections.iter().map(|(_, connection)| connection.kept()).sum();
    assert!(kept > 0 && kept <= 64 << 10, "{kept}");
    let expected = bytes.clone();
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; expected.len()];
        client.read_exact(&mut all).unwrap();
        assert!(all == expected);
    });
    while sent < bytes.len() {
        if !feed(&mut machine, &mut sent) && sent < bytes.len() {
            assert!(machine.turn(PATIENCE), "no room has come");
        }
    }
    while machine.device.connections.iter().any(|(_, connection)| connection.kept() > 0) {
        machine.turn(PATIENCE);
    }
    reader.join().unwrap();
}

#[test]
fn ports_come_and_go_while_it_runs() {
    let mut machine = Machine::inactive();
    let first = machine.publish(listener()).unwrap();
    // Its clients wait for the guest's driver.
    let early = connect(first);
    let mut machine = machine.again();
    machine.offer(usize::MAX);
    machine.until_opened(1);
    assert_eq!(machine.settle().len(), 1);
    let others: Vec<SocketAddr> = (1..MAX_PORTS).map(|_| machine.publish(listener()).unwrap()).collect();
    assert!(matches!(machine.publish(listener()), Err(DeviceError::Host { .. })));
    let (mut client, pair) = machine.published_client(others[9]);
    machine.unpublish(others[9]);
    machine.unpublish(others[9]);
    assert_eq!(TcpStream::connect(others[9]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // What is connected stays so.
    machine.send(data(pair, b"x"), b"x");
    client.read_exact(&mut [0]).unwrap();
    let again = machine.publish(listener()).unwrap();
    machine.published_client(again);
    // After a reset of the device they are there as before.
    machine.device.deactivate(&Events::new(&machine.epoll, 0));
    is_reset(&mut client);
    let mut machine = machine.again();
    machine.offer(usize::MAX);
    machine.published_client(first);
    drop(early);
}

#[test]
fn clients_keep_the_machine_busy_and_are_counted() {
    let mut machine = Machine::new();
    let address = machine.publish(listener()).unwrap();
    let (client, pair) = machine.published_client(address);
    std::thread::sleep(Duration::from_millis(30));
    let activity = Arc::clone(&machine.device.counters().activity);
    assert_eq!(activity.idle(), Duration::ZERO);
    drop(client);
    assert_eq!(ops(&machine.next(), pair), [Op::Shutdown]);
    machine.send(shutdown(pair, SHUTDOWN_SEND), &[]);
    machine.settle();
    std::thread::sleep(Duration::from_millis(2));
    assert!(activity.idle() > Duration::ZERO);
    // Beyond the limit they are turned away at once, and others are not.
    let most = MAX_CONNECTIONS - RESERVED;
    let mut streams: Vec<UnixStream> = (0..most).map(|_| machine.client()).collect();
    machine.until_opened(most);
    let mut client = connect(address);
    while machine.device.counters().refused.load(Relaxed) == 0 {
        assert!(machine.turn(PATIENCE));
    }
    is_reset(&mut client);
    streams.push(machine.client());
    machine.until_opened(most + 1);
    drop(streams);
}

#[test]
fn what_has_no_clients_of_tcp_or_udp_is_refused() {
    let refused = |socket: OwnedFd| Published::new(socket, &target()).unwrap_err().kind();
    assert_eq!(refused(UnixDatagram::unbound().unwrap().into()), ErrorKind::InvalidInput);
    assert_eq!(refused(UnixStream::pair().unwrap().0.into()), ErrorKind::InvalidInput);
    assert_eq!(refused(connect(listener_of_a_thread()).into()), ErrorKind::InvalidInput);
    refused(std::fs::File::open("/dev/null").unwrap().into());
    let long = Target { preface: vec![0; MAX_PREFACE + 1], ..target() };
    assert!(Published::new(listener().into(), &long).is_err());
}

/// One that is open for as long as the process.
fn listener_of_a_thread() -> SocketAddr {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.accept().map(|_| std::thread::park()));
    address
}

/// What the listener's maker sets, the sockets of its clients have: the device sets nothing.
#[test]
fn the_listener_s_options_are_those_of_its_clients() {
    let listener = listener();
    sockopt::set_tcp_nodelay(&listener, true).unwrap();
    sockopt::set_socket_keepalive(&listener, true).unwrap();
    sockopt::set_tcp_keepidle(&listener, Duration::from_secs(77)).unwrap();
    let mut machine = Machine::new();
    let address = machine.publish(listener).unwrap();
    let _client = connect(address);
    machine.until_opened(1);
    let (_, connection) = machine.device.connections.iter().next().unwrap();
    let socket = connection.socket();
    assert!(sockopt::tcp_nodelay(socket).unwrap() && sockopt::socket_keepalive(socket).unwrap());
    assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), Duration::from_secs(77));
}
