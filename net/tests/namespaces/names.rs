//! Names: the gateway's server, and servers by name.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use net::engine::Config;
use rustix::io::Errno;
use tempfile::TempDir;

use super::place::{ALL, OTHER, PRIVATE, PUBLIC, Place, config};

/// Where the host's name server is.
const RESOLVER: &str = "127.0.0.53:53";

/// A query for the IPv4 addresses of `name`.
fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn answer(query: &[u8], address: &str) -> Vec<u8> {
    let address: std::net::Ipv4Addr = address.parse().unwrap();
    let end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    let mut message = query[..2].to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    message.extend(&query[12..end]);
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address.octets());
    message
}

/// What the gateway answers: its code, and the last four bytes.
fn ask(name: &str) -> (u8, Vec<u8>) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.connect("192.0.0.1:53").unwrap();
    socket.send(&query(name)).unwrap();
    let mut buffer = vec![0; 4096];
    let len = socket.recv(&mut buffer).unwrap();
    (buffer[3] & 0xf, buffer[len - 4..len].to_vec())
}

/// The host's side: a name server that says of every name that it is at PUBLIC, of `evil.` that it is private; and web servers.
/// Besides, how many questions the name server was asked.
pub(crate) fn place(policy: &str) -> Option<(Place, Arc<AtomicUsize>)> {
    let hosts = [("db.internal".to_owned(), PRIVATE.parse().unwrap())].into();
    let config = Config { resolvers: vec![RESOLVER.parse().unwrap()], hosts, ..config(policy) };
    let place = Place::new(config, ALL)?;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let ((), _) = place.host(move |ready| {
        let socket = UdpSocket::bind(RESOLVER).unwrap();
        ready.send(()).unwrap();
        loop {
            let mut buffer = [0; 4096];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            count.fetch_add(1, SeqCst);
            let evil = buffer[..len].windows(4).any(|part| part == b"evil");
            let reply = answer(&buffer[..len], if evil { "169.254.169.254" } else { PUBLIC });
            socket.send_to(&reply, from).unwrap();
        }
    });
    for ip in [PUBLIC, OTHER] {
        let ((), _) = place.serve(move |ready| {
            let listener = TcpListener::bind((ip, 80)).unwrap();
            ready.send(()).unwrap();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut got = [0; 100];
                if matches!(stream.read(&mut got), Ok(1..)) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                }
            }
        });
    }
    Some((place, asked))
}

/// A command of the guest's that asks the gateway for names, with a search domain.
pub(crate) fn resolving(files: &TempDir, program: &str) -> Command {
    let resolv = files.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 192.0.0.1\nsearch example.org\n").unwrap();
    let mut command = Command::new("unshare");
    let script = r#"mount --bind "$1" /etc/resolv.conf && shift && exec "$@""#;
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(resolv).arg(program);
    command
}

fn get(ip: &str, name: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((ip, 80))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    // At once: the server answers what it has got.
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes())?;
    let mut got = String::new();
    stream.read_to_string(&mut got)?;
    Ok(got)
}

#[test]
fn a_name_that_leads_to_a_private_address_leads_nowhere() {
    let Some((_place, _)) = place("{}") else { return };
    assert_eq!(ask("www.example.org"), (0, vec![93, 184, 215, 14]));
    let (_, end) = ask("evil.example.org");
    assert_ne!(end, [169, 254, 169, 254]);
}

#[test]
fn a_server_is_reached_by_an_allowed_name_alone() {
    let Some((place, _)) = place(r#"{"mode": "allow", "allow": ["www.example.org"]}"#) else { return };
    assert_eq!(ask("bad.example.org").0, 3);
    let unknown = get(PUBLIC, "www.example.org").unwrap_err();
    assert_eq!(unknown.raw_os_error(), Some(Errno::HOSTUNREACH.raw_os_error()));
    assert_eq!(ask("www.example.org").0, 0);
    assert!(get(PUBLIC, "www.example.org").unwrap().starts_with("HTTP/1.1 200"));
    let spoofed = get(PUBLIC, "bad.example.org").unwrap_err();
    assert_eq!(spoofed.raw_os_error(), Some(Errno::CONNRESET.raw_os_error()));
    let elsewhere = get(OTHER, "www.example.org").unwrap_err();
    assert_eq!(elsewhere.raw_os_error(), Some(Errno::HOSTUNREACH.raw_os_error()));
    assert_eq!(place.denials.lock().unwrap().len(), 4);
}

#[test]
fn where_rules_are_addresses_alone_no_name_leaves_the_machine() {
    let Some((place, asked)) = place(r#"{"mode": "allow", "allow": ["10.9.8.0/24", "93.184.215.14"]}"#)
    else {
        return;
    };
    let files = tempfile::tempdir().unwrap();
    for name in ["c2VjcmV0.www.example.org", "www"] {
        let output = resolving(&files, "getent").args(["ahosts", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "no such name: {output:?}");
    }
    let known = resolving(&files, "getent").args(["ahosts", "db.internal"]).output().unwrap();
    assert!(String::from_utf8_lossy(&known.stdout).starts_with(PRIVATE), "{known:?}");
    assert!(get(PUBLIC, "anything").unwrap().starts_with("HTTP/1.1 200"));
    let denials = place.denials.lock().unwrap();
    let told: BTreeSet<_> = denials
        .iter()
        .map(|denial| (&denial.protocol[..], &denial.destination[..], &denial.rule[..]))
        .collect();
    let expected =
        ["c2vjcmv0.www.example.org", "c2vjcmv0.www.example.org.example.org", "www", "www.example.org"];
    assert_eq!(told, expected.map(|name| ("dns", name, "allow: no rule for it")).into());
    assert_eq!(asked.load(SeqCst), 0);
}
