//! Clients that do not keep to the protocol, and those that do meanwhile.

use std::io::Read as _;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::control::{Client, Contact, ControlError};
use crate::spec::{Target, Transport};

const LISTENER: u64 = 0;
const FIRST: u64 = 1;

/// A server on a thread, which ends at the request to kill.
struct Running {
    address: SocketAddr,
    thread: JoinHandle<()>,
}

impl Running {
    fn start() -> Self {
        let listener = UnixListener::bind_addr(&name()).unwrap();
        let address = listener.local_addr().unwrap();
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
                .unwrap();
        let greeting = Greeting { version: crate::spec::VERSION, id: "test".to_owned() };
        let server = Server::new(listener, pidfd, &greeting).unwrap();
        Self { address, thread: std::thread::spawn(|| run(server)) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect_addr(&self.address).unwrap();
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(Duration::from_mins(1))).unwrap();
        }
        stream
    }

    fn client(&self) -> Client {
        Client::new(self.connect(), Duration::from_mins(1)).unwrap()
    }

    /// It still does its work, and ends.
    fn end(self) {
        let mut client = self.client();
        client.pause().unwrap();
        client.kill().unwrap();
        self.thread.join().unwrap();
    }
}

/// Nobody else's, and gone with the test.
fn name() -> SocketAddr {
    SocketAddr::from_abstract_name(format!("voidrun-{}-{}", std::process::id(), fastrand::u64(..))).unwrap()
}

/// What the machine's main loop does.
fn run(mut server: Server) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&epoll, server.listener(), EventData::new_u64(LISTENER), EventFlags::IN).unwrap();
    let (mut killed, mut addresses) = (false, Vec::new());
    while !killed {
        let mut events = Vec::with_capacity(16);
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in events {
            match event.data.u64() {
                LISTENER => server.accept(&epoll, FIRST),
                client => server.serve(client, |request, descriptor| {
                    killed |= request == Request::Kill;
                    match (request, descriptor) {
                        (Request::AddPort(_), Some(listener)) => {
                            addresses.push(TcpListener::from(listener).local_addr().unwrap());
                            Response::Done
                        }
                        (Request::AddPort(_), None) => Response::Error { message: "none".to_owned() },
                        (Request::Ports, _) => {
                            Response::Ports { addresses: addresses.clone(), udp: Vec::new() }
                        }
                        _ => Response::Done,
                    }
                }),
            }
            assert!(server.clients.len() <= MAX_CLIENTS);
            assert!(server.clients.values().all(|client| client.received.len() <= MAX_LINE));
        }
    }
}

fn process_of(pidfd: &OwnedFd) -> u32 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
    pid.trim().parse().unwrap()
}

/// Reads to the end of the stream, which may be a reset.
fn read_all(mut stream: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    all
}

#[test]
fn lines_that_are_not_understood_are_answered() {
    let server = Running::start();
    let mut stream = server.connect();
    stream.write_all(b"\n{}\nwhat\n\xff\xfe\n{\"request\":\"explode\"}\n{\"request\":\"status\"}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let text = String::from_utf8(read_all(&stream)).unwrap();
    let answers: Vec<Response> =
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 6, "{text}");
    assert!(answers[..5].iter().all(|answer| matches!(answer, Response::Error { .. })), "{text}");
    assert_eq!(answers[5], Response::Done);
    server.end();
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let server = Running::start();
    let mut stream = server.connect();
    for byte in b"{\"request\":\"status\"}\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_all(&stream).ends_with(b"\n{\"response\":\"done\"}\n"));
    server.end();
}

#[test]
fn a_descriptor_comes_with_a_request() {
    let server = Running::start();
    let mut client = server.client();
    let target = Target { port: 1024, preface: vec![0, 255] };
    let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    for listener in &listeners {
        client.add_port(listener.as_fd(), target.clone()).unwrap();
    }
    let addresses: Vec<_> =
        listeners.iter().map(|listener| (Transport::Tcp, listener.local_addr().unwrap())).collect();
    assert_eq!(client.ports().unwrap(), addresses);
    for transport in [Transport::Tcp, Transport::Udp] {
        client.remove_port(transport, addresses[0].1).unwrap();
    }
    server.end();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let server = Running::start();
    let mut stream = server.connect();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let send = |bytes: &[u8], count: usize| {
        let descriptors = vec![writer.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(50))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    };
    for _ in 0..20 {
        send(b" ", 50);
        send(b" ", 1);
    }
    // A request has one at most, and this one has no use for it.
    send(b"{\"request\":\"pause\"}\n", 50);
    drop(writer);
    // Nobody has the pipe open any more, though the client is still there.
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
    stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_all(&stream).ends_with(b"{\"response\":\"done\"}\n{\"response\":\"done\"}\n"));
    server.end();
}

#[test]
fn a_line_without_an_end_ends_the_connection() {
    let server = Running::start();
    let mut stream = server.connect();
    let error = (0..).find_map(|_| stream.write_all(&[b'['; 4096]).err()).unwrap();
    assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
    server.end();
}

#[test]
fn who_does_not_read_is_dropped() {
    let server = Running::start();
    let mut stream = server.connect();
    let error = (0..).find_map(|_| stream.write_all(b"nonsense\n").err()).unwrap();
    assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
    server.end();
}

#[test]
fn no_more_clients_than_there_is_room_for() {
    let server = Running::start();
    let mut clients: Vec<Client> = (0..MAX_CLIENTS).map(|_| server.client()).collect();
    // One more is turned away, and learns whom to end.
    let contact = Contact::new(server.connect(), Duration::from_mins(1)).unwrap();
    assert_eq!(process_of(contact.pidfd()), std::process::id());
    assert!(contact.greeted().unwrap().pause().is_err());
    for client in &mut clients {
        client.pause().unwrap();
    }
    // Its end is seen before a later client's request.
    drop(clients.pop());
    clients[0].pause().unwrap();
    server.end();
}

/// A machine's process that somebody has broken into may say anything, at any pace.
#[test]
fn a_machine_that_does_not_keep_to_the_protocol() {
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
    let pidfd = pidfd.unwrap();
    let server = |version| {
        let listener = UnixListener::bind_addr(&name()).unwrap();
        let greeting = Greeting { version, id: "test".to_owned() };
        Server::new(listener, pidfd.try_clone().unwrap(), &greeting).unwrap()
    };
    let limit = Duration::from_millis(300);

    let other = server(crate::spec::VERSION + 1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    other.greet(&theirs).unwrap();
    let contact = Contact::new(ours, limit).unwrap();
    assert_eq!(process_of(contact.pidfd()), std::process::id());
    assert!(
        matches!(contact.greeted(), Err(ControlError::Version(version)) if version != crate::spec::VERSION)
    );

    // Each byte comes in time, and the answer does not.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    server(crate::spec::VERSION).greet(&theirs).unwrap();
    let slow = std::thread::spawn(move || {
        while theirs.write_all(b" ").is_ok() {
            std::thread::sleep(limit / 10);
        }
    });
    let mut client = Client::new(ours, limit).unwrap();
    let began = std::time::Instant::now();
    let error = client.status().unwrap_err();
    assert!(matches!(&error, ControlError::Io(_)), "{error:?}");
    assert!((limit..limit * 10).contains(&began.elapsed()), "{:?}", began.elapsed());
    drop(client);
    slow.join().unwrap();
}

#[test]
fn any_bytes() {
    let server = Running::start();
    let mut patient = server.client();
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let bytes: Vec<u8> = (0..random.usize(..20_000))
            .map(|_| random.choice(b"\n{}\":,[]status\0\xff"))
            .map(|b| *b.unwrap())
            .collect();
        let mut stream = server.connect();
        // It may be dropped before it has sent all.
        let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        drop(stream);
        patient.resume().unwrap();
    }
    server.end();
}
