//! A guest's network, in network namespaces of the test's own, which only root makes: one with the daemon, and another machine's, whose
//! servers have addresses that look public, private, and like a cloud's metadata.

mod limits;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use net::policy::{Mode, Policy};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use vmm::control::Client;

use crate::{Daemon, PATIENCE};

pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The daemon's side's, which looks public as well.
const OWN: Ipv4Addr = Ipv4Addr::new(93, 184, 217, 1);
/// As of systemd-resolved.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
/// Each way.
const MANY: usize = 8 << 20;

/// Servers that nobody may reach.
struct Decoys(Arc<AtomicUsize>);

/// The thread of another machine, and what is to be run there.
pub(crate) struct Neighbour(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Neighbour {
    /// One with nothing in its network, and its thread's id.
    fn new() -> (Self, i32) {
        let (sender, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, made) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: as in `enter_namespace`.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            ready.send(gettid().as_raw_pid()).unwrap();
            for job in jobs {
                job();
            }
        });
        (Self(sender), made.recv().unwrap())
    }

    /// Runs `job` there to its end, and gives what it has made.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (ended, end) = mpsc::channel();
        self.0.send(Box::new(move || ended.send(job()).unwrap())).unwrap();
        end.recv().unwrap()
    }
}

/// Runs `ip` with these arguments, in the calling thread's namespace.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Gives the calling thread, and what it starts, a network and a resolv.conf of its own, with another machine behind a cable, which has
/// [`PUBLIC`], [`METADATA`] and [`PRIVATE`].
#[must_use = "the other machine goes with it"]
pub(crate) fn enter_namespace(files: &std::path::Path) -> Neighbour {
    // SAFETY: descriptors stay shared with the other threads; the file system's view, which does not, is this test's alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.expect("only root can");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let resolv = files.join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {RESOLVER}\nsearch test\n")).unwrap();
    mount_bind(&resolv, "/etc/resolv.conf").unwrap();
    let (neighbour, thread) = Neighbour::new();
    ip("link set lo up");
    ip(&format!("link add cable type veth peer name cable netns {thread}"));
    ip("link set cable up");
    ip(&format!("addr add {OWN}/24 dev cable"));
    neighbour.run(|| {
        ip("link set cable up");
        for address in [PUBLIC, METADATA, PRIVATE] {
            ip(&format!("addr add {address}/32 dev cable"));
        }
        ip(&format!("route add {OWN} dev cable"));
    });
    for address in [PUBLIC, METADATA, PRIVATE] {
        ip(&format!("route add {address} dev cable"));
    }
    // So that the host's ping sockets are there for everybody.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    neighbour
}

pub(crate) fn serve(address: impl Into<SocketAddr>, client: impl Fn(TcpStream) + Clone + Send + 'static) {
    let listener = TcpListener::bind(address.into()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let client = client.clone();
            std::thread::spawn(move || client(stream.unwrap()));
        }
    });
}

impl Decoys {
    fn new(neighbour: &Neighbour) -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        let decoy = |address, reached: &Arc<AtomicUsize>| {
            let reached = Arc::clone(reached);
            serve((address, 80), move |_| _ = reached.fetch_add(1, Ordering::SeqCst));
        };
        for address in [OWN, Ipv4Addr::LOCALHOST] {
            decoy(address, &reached);
        }
        let there = Arc::clone(&reached);
        neighbour.run(move || {
            for address in [METADATA, PRIVATE] {
                decoy(address, &there);
            }
        });
        Self(reached)
    }

    fn reached(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Answers one request by HTTP.
fn http(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let len = stream.read(&mut request).unwrap();
    if len == 0 {
        return;
    }
    assert!(request[..len].starts_with(b"GET /hello HTTP/1.1\r\n"));
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
}

/// Takes all there is, and tells its digest and as much again, after the client's end.
fn both_ways(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    // One whose guest is allowed to speak to us no more is reset.
    if stream.read_to_end(&mut bytes).is_err() {
        return;
    }
    stream.write_all(digest(&bytes).as_bytes()).unwrap();
    bytes.reverse();
    stream.write_all(&bytes).unwrap();
}

/// A name server that knows two names.
pub(crate) fn name_server(address: Ipv4Addr) {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((len, client)) = socket.recv_from(&mut query) {
            let query = &query[..len];
            // A header of 12 bytes; a name, ended by a zero; a type and a class.
            let Some(end) = query[12..].iter().position(|byte| *byte == 0).map(|end| 12 + end + 5) else {
                continue;
            };
            let name = &query[12..end - 4];
            let address = match name {
                b"\x03web\x04test\0" => Some(PUBLIC),
                b"\x06rebind\x04test\0" => Some(PRIVATE),
                _ => None,
            };
            let is_a = query[end - 4..end] == [0, 1, 0, 1];
            let answers = u8::from(address.is_some() && is_a);
            // A response, recursive; NXDOMAIN where there is no such name.
            let code = if address.is_some() { 0x80 } else { 0x83 };
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, code, 0, 1, 0, answers, 0, 0, 0, 0]);
            answer.extend(&query[12..end]);
            if let Some(address) = address.filter(|_| is_a) {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address.octets());
            }
            socket.send_to(&answer, client).unwrap();
        }
    });
}

pub(crate) fn control(daemon: &Daemon, id: &str) -> Client {
    let stream = UnixStream::connect(daemon.store.path().join("sandboxes").join(id).join("control.sock"));
    Client::new(stream.unwrap(), PATIENCE).unwrap()
}

pub(crate) fn create(daemon: &Daemon, body: Value) -> String {
    daemon.data("POST", "/v1/sandboxes", body)["id"].as_str().unwrap().to_owned()
}

/// What a program of Python prints.
#[track_caller]
pub(crate) fn python(daemon: &Daemon, id: &str, program: &str) -> String {
    let body = json!({ "command": "python3", "args": ["-c", program], "timeout": 900 });
    let ran = daemon.data("POST", &format!("/v1/sandboxes/{id}/exec"), body);
    assert_eq!((&ran["exitCode"], &ran["stderr"]), (&json!(0), &json!("")), "{ran}");
    ran["stdout"].as_str().unwrap().to_owned()
}

/// Connects, and prints why that failed; at once is within five seconds.
fn tries(address: Ipv4Addr, port: u16) -> String {
    format!(
        "import errno, socket, time\n\
         began = time.monotonic()\n\
         try:\n    \
             socket.create_connection(('{address}', {port}), 60)\n    \
             print('connected')\n\
         except OSError as error:\n    \
             print(errno.errorcode.get(error.errno, error), time.monotonic() - began < 5)\n"
    )
}

#[test]
fn a_guest_reaches_what_is_public_and_nothing_else() {
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    let decoys = Decoys::new(&neighbour);
    neighbour.run(|| {
        serve((PUBLIC, 8080), http);
        serve((PUBLIC, 9000), both_ways);
    });
    name_server(RESOLVER);
    let daemon = Daemon::new();
    let id = create(&daemon, json!({ "image": "code", "mem": 512, "name": "public" }));
    let python = |program: &str| python(&daemon, &id, program);
    let mut control = control(&daemon, &id);

    // By address, and by name: as it is, and with the host's search domain.
    for host in [&PUBLIC.to_string(), "web.test", "web"] {
        let get = format!(
            "import urllib.request\nprint(urllib.request.urlopen('http://{host}:8080/hello').read())"
        );
        assert_eq!(python(&get), "b'hello\\n'\n");
    }
    assert_eq!(python(&tries(PUBLIC, 81)), "ECONNREFUSED True\n");
    let resolve = "import socket\ntry:\n    print(socket.getaddrinfo('NAME', 80))\n\
                   except socket.gaierror:\n    print('no address')";
    for name in ["rebind.test", "nowhere.test"] {
        assert_eq!(python(&resolve.replace("NAME", name)), "no address\n");
    }

    for address in [METADATA, PRIVATE, OWN, Ipv4Addr::new(192, 0, 0, 1)] {
        let said = python(&tries(address, 80));
        assert!(said.starts_with('E') && said.ends_with(" True\n"), "{address}: {said}");
    }
    assert_eq!(decoys.reached(), 0);
    let denials = control.denials(0).unwrap();
    for (address, rule) in [
        (METADATA, "public: metadata service (169.254.169.254)"),
        (PRIVATE, "public: private address (10.0.0.0/8)"),
        (OWN, "public: address of this machine"),
    ] {
        let denied = format!("{address}:80");
        let told = denials.iter().find(|denial| denial.denial.destination == denied);
        let told = told.unwrap_or_else(|| panic!("{denied} is not in {denials:?}"));
        assert_eq!((&told.denial.protocol[..], &told.denial.rule[..]), ("tcp", rule));
    }
    assert_eq!(control.denials(denials.last().unwrap().number).unwrap(), []);

    much_both_ways(&python, &mut control);
    let ping = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)\n\
         s.settimeout(60)\n\
         s.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b'data', ('{PUBLIC}', 1))\n\
         print(s.recv(100)[8:])\n"
    );
    assert_eq!(python(&ping), "b'data'\n");

    another_policy(&daemon, &id, &mut control);
}

/// Data, the end of the guest's, and data again, by one connection.
fn much_both_ways(python: &dyn Fn(&str) -> String, control: &mut Client) {
    let before = control.metrics().unwrap();
    let exchange = format!(
        "import hashlib, os, socket\n\
         data = os.urandom({MANY})\n\
         s = socket.create_connection(('{PUBLIC}', 9000))\n\
         s.sendall(data)\n\
         s.shutdown(socket.SHUT_WR)\n\
         back = b''.join(iter(lambda: s.recv(1 << 16), b''))\n\
         assert back[:64].decode() == hashlib.sha256(data).hexdigest(), 'to the host'\n\
         assert back[64:] == data[::-1], ('to the guest', len(back))\n\
         print('same')\n"
    );
    assert_eq!(python(&exchange), "same\n");
    let after = control.metrics().unwrap();
    let (network, earlier) = (after.network.unwrap(), before.network.unwrap());
    assert_eq!(network.connections - earlier.connections, 1);
    assert!(network.sent_bytes - earlier.sent_bytes > MANY as u64);
    assert!(network.received_bytes - earlier.received_bytes > MANY as u64);
    assert!(network.denied >= 3, "{network:?}");
    // Frames are many times as many: 5,800 segments of the wire's MTU each way.
    let (device, earlier) = (after.devices["net"], before.devices["net"]);
    let notifications = device.notifications - earlier.notifications;
    let interrupts = device.interrupts - earlier.interrupts;
    eprintln!("8 MiB each way: {notifications} notifications, {interrupts} interrupts");
    assert!(notifications < 4000 && interrupts < 4000, "{notifications}, {interrupts}");
}

/// It ends what it does not allow, and holds for what comes.
fn another_policy(daemon: &Daemon, id: &str, control: &mut Client) {
    let python = |program: &str| python(daemon, id, program);
    let waits = format!(
        "import socket\n\
         s = socket.create_connection(('{PUBLIC}', 9000))\n\
         open('/tmp/up', 'w').close()\n\
         try:\n    print(s.recv(1))\nexcept ConnectionResetError:\n    print('reset')\n"
    );
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| python(&waits));
        crate::until(|| {
            let body = json!({ "command": "test", "args": ["-e", "/tmp/up"] });
            daemon.data("POST", &format!("/v1/sandboxes/{id}/exec"), body)["exitCode"] == 0
        });
        control.set_network(Mode::Allow.into()).unwrap();
        assert_eq!(waiting.join().unwrap(), "reset\n");
    });
    assert!(!python(&tries(PUBLIC, 8080)).contains("connected"));
    control.set_network(Policy::default()).unwrap();
    assert_eq!(python(&tries(PUBLIC, 8080)), "connected\n");
}

/// One request by HTTP to this address and port, for this host; prints the answer's last line, or why there is none.
fn gets(address: &str, port: u16, host: &str) -> String {
    format!(
        "import socket\n\
         try:\n    \
             s = socket.create_connection(('{address}', {port}), 60)\n    \
             s.sendall(b'GET /hello HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n')\n    \
             print(b''.join(iter(lambda: s.recv(4096), b'')).decode().splitlines()[-1])\n\
         except OSError as error:\n    print(type(error).__name__)\n"
    )
}

#[test]
fn a_policy_of_names_by_the_command_line() {
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    let decoys = Decoys::new(&neighbour);
    neighbour.run(|| {
        serve((PUBLIC, 80), http);
        serve((PUBLIC, 8080), http);
    });
    serve((Ipv4Addr::LOCALHOST, 7070), http);
    name_server(RESOLVER);
    let daemon = Daemon::new();
    let cli = |arguments: &[&str]| daemon.cli(arguments).text();
    let made = ["create", "--name", "dev", "--memory", "512m", "--allow", "web.test", "--allow-host", "7070"];
    let id = cli(&[&made[..], &["--add-host", "db:10.0.0.1", "code"]].concat());
    let python = |program: &str| python(&daemon, id.trim_end(), program);

    // The name has to be asked for, and said: an address alone, another name and a name that no rule has do not pass.
    assert_ne!(python(&gets(&PUBLIC.to_string(), 80, "web.test")), "hello\n");
    assert_eq!(python(&gets("web.test", 80, "web.test")), "hello\n");
    assert_eq!(python(&gets(&PUBLIC.to_string(), 80, "web.test")), "hello\n");
    for host in ["rebind.test", "evil.test", "93.184.216.34"] {
        assert_ne!(python(&gets("web.test", 80, host)), "hello\n", "{host}");
    }
    assert_eq!(python(&gets("rebind.test", 80, "rebind.test")), "gaierror\n");
    // A name that the user has added resolves, and needs a rule all the same.
    assert_ne!(python(&gets("db", 80, "db")), "hello\n");
    // The host's loopback: the port that was opened, and no other.
    assert_eq!(python(&gets("host.voidrun.internal", 7070, "x")), "hello\n");
    assert_ne!(python(&gets("host.voidrun.internal", 80, "x")), "hello\n");
    assert_eq!(decoys.reached(), 0);

    let log = cli(&["logs", "--network", "dev"]);
    for words in ["dns rebind.test", "evil.test", "tcp 93.184.216.34:80", "tcp 10.0.0.1:80"] {
        assert!(log.contains(words), "{words} is not in:\n{log}");
    }
    assert_eq!(cli(&["logs", "--network", "--tail", "1", "dev"]).lines().count(), 1);

    // Another policy holds at once. What is not said stays, but for what goes with another mode.
    assert_eq!(cli(&["network", "dev"]), "allow\nallow web.test\nallow-host 7070\n");
    assert_eq!(
        cli(&["network", "dev", "--network", "public", "--deny", "tcp:93.184.216.34:8080"]),
        "public\ndeny tcp:93.184.216.34:8080\n"
    );
    assert_ne!(python(&gets("host.voidrun.internal", 7070, "x")), "hello\n");
    let added = "public\ndeny tcp:93.184.216.34:8080\nallow-host 7070\n";
    assert_eq!(cli(&["network", "dev", "--allow-host", "7070"]), added);
    assert_ne!(python(&gets("web.test", 8080, "x")), "hello\n");
    assert_eq!(python(&gets("web.test", 80, "evil.test")), "hello\n");
    cli(&["network", "dev", "--network", "none"]);
    assert_ne!(python(&gets(&PUBLIC.to_string(), 80, "web.test")), "hello\n");
    let path = "/v1/sandboxes/dev";
    let wrong = daemon.refuses(422, "PATCH", path, json!({ "network": { "allow": ["*", "exa mple.org"] } }));
    assert!(wrong.starts_with("network.allow[1]: "), "{wrong}");

    // It is in the sandbox's record, and one that was started without a network has no device for one.
    cli(&["stop", "dev"]);
    cli(&["start", "dev"]);
    let none = daemon.refuses(409, "PATCH", path, json!({ "network": { "mode": "public", "deny": [] } }));
    assert!(none.contains("was started without a network"), "{none}");
    cli(&["stop", "dev"]);
    daemon.data("PATCH", path, json!({ "network": { "mode": "public", "deny": [] } }));
    cli(&["start", "dev"]);
    assert_eq!(python(&gets("web.test", 8080, "x")), "hello\n");

    // The host gets other name servers: the one before answers no more.
    name_server(Ipv4Addr::new(127, 0, 0, 54));
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.99\n").unwrap();
    crate::until(|| python(&gets("WEB.test.", 8080, "x")) == "gaierror\n");
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.54\n").unwrap();
    crate::until(|| python(&gets("web.test.", 8080, "x")) == "hello\n");
    assert_eq!(decoys.reached(), 0);
}

#[test]
fn without_a_network_there_is_none() {
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    let decoys = Decoys::new(&neighbour);
    let daemon = Daemon::new();
    let mut exits = [0, 0];
    for (mode, exits) in ["none", "public"].into_iter().zip(&mut exits) {
        let body = json!({ "image": "debian", "mem": 256, "network": { "mode": mode }, "warm": false });
        let id = create(&daemon, body);
        let exec = |command: &str| {
            daemon.data("POST", &format!("/v1/sandboxes/{id}/exec"), json!({ "command": command }))["stdout"]
                .take()
        };
        let mut control = control(&daemon, &id);
        assert_eq!(exec("true"), "");
        *exits = control.metrics().unwrap().exits.values().sum::<u64>();
        // Each sandbox has one of its own.
        let address = exec("cat /sys/class/net/e*/address");
        let address = address.as_str().unwrap();
        assert!(if mode == "none" { address.is_empty() } else { address.starts_with("02:") }, "{address}");
        // Its own loopback interface is there in any case.
        assert_eq!(
            exec("(: 3<>/dev/tcp/127.0.0.1/80) || echo refused; cat /sys/class/net/lo/carrier"),
            "refused\n1\n"
        );
        let landlock = control.status().unwrap().jail.landlock.unwrap();
        // LANDLOCK_ACCESS_NET_BIND_TCP, and CONNECT_TCP.
        let denied = if mode == "none" { 3 } else { 1 };
        assert_eq!(landlock.net & 3, if landlock.abi >= 4 { denied } else { 0 });
        assert_eq!(control.metrics().unwrap().network.is_some(), mode == "public");
        assert_eq!(control.set_network(Policy::default()).is_ok(), mode == "public");
        assert_eq!(control.denials(0).unwrap(), []);
    }
    eprintln!("returns of KVM_RUN for the boot and one command: {exits:?} without and with a network");
    // Of four devices, whose drivers write most registers without one; and of one more, with what its driver says at first.
    assert!(exits[0] < 340 && exits[1] < exits[0] + 80, "{exits:?}");
    assert_eq!(decoys.reached(), 0);
}
