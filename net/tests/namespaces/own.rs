//! The host's own addresses: what listens there is not reached, unless a rule says so.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::place::{
    ALL, NEIGHBOUR6, OWN, OWN_BROADCAST, OWN_LO, OWN_ROUTER6, OWN_TOO, OWN6, OWN6_TOO, PUBLIC, PUBLIC6,
    Place, config,
};

const RULE: &str = "public: address of this machine";

/// Says its name by TCP at port 80 of each address of this namespace, and by UDP at port 123 of these; counts who asks.
fn servers(name: &'static str, addresses: &[&str]) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("[::]:80").unwrap();
    let count = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, SeqCst);
            let _ = stream.unwrap().write_all(name.as_bytes());
        }
    });
    for &ip in addresses {
        let socket = UdpSocket::bind((ip, 123)).unwrap();
        let count = asked.clone();
        thread::spawn(move || {
            loop {
                let (_, from) = socket.recv_from(&mut [0; 100]).unwrap();
                count.fetch_add(1, SeqCst);
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }
    asked
}

fn by_tcp(ip: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((ip, 80))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn by_udp(ip: &str) -> std::io::Result<String> {
    let socket = UdpSocket::bind(if ip.contains(':') { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.connect((ip, 123))?;
    socket.send(b"who?")?;
    let mut buffer = [0; 100];
    let len = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// `None`: there is no program for it.
fn by_echo(ip: &str) -> Option<bool> {
    let output = Command::new("ping").args(["-c", "1", "-W", "5", ip]).output();
    Some(output.ok()?.status.success())
}

fn place(policy: &str) -> Option<(Place, Arc<AtomicUsize>)> {
    let place = Place::new(config(policy), ALL)?;
    let (asked, _) = place.host(|ready| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        let asked = servers("host", &["::"]);
        // All of them are reached from here.
        UdpSocket::bind("[::]:0").unwrap().send_to(b"who?", (OWN_ROUTER6, 123)).unwrap();
        for ip in [OWN, OWN_TOO, OWN_LO, OWN6, OWN6_TOO] {
            assert_eq!(by_tcp(ip).unwrap(), "host", "{ip}");
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while asked.load(SeqCst) < 6 {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        asked.store(0, SeqCst);
        ready.send(asked).unwrap();
    });
    let ((), _) = place.serve(|ready| {
        servers("other", &[PUBLIC, PUBLIC6, NEIGHBOUR6]);
        ready.send(()).unwrap();
    });
    Some((place, asked))
}

#[test]
fn what_the_host_serves_at_its_own_addresses_is_closed() {
    let Some((place, asked)) = place("{}") else { return };
    let embedded = format!("64:ff9b::{OWN}");
    let mut expected = Vec::new();
    for ip in [OWN, OWN_TOO, OWN_LO, OWN6, OWN6_TOO, OWN_ROUTER6, &embedded] {
        let v6 = ip.contains(':');
        let errno = if v6 { Errno::ACCESS } else { Errno::HOSTUNREACH };
        assert_eq!(by_tcp(ip).unwrap_err().raw_os_error(), Some(errno.raw_os_error()), "{ip}");
        assert_eq!(by_udp(ip).unwrap_err().raw_os_error(), Some(errno.raw_os_error()), "{ip}");
        // The kernel's own form.
        let ip: std::net::IpAddr = ip.parse().unwrap();
        let told = |port| std::net::SocketAddr::new(ip, port).to_string();
        expected.extend([("tcp", told(80)), ("udp", told(123))]);
        match by_echo(&ip.to_string()) {
            Some(answered) => {
                assert!(!answered, "{ip}");
                expected.push(("icmp", ip.to_string()));
            }
            None => eprintln!("not tested: there is no ping"),
        }
    }
    let denials = place.denials.lock().unwrap().clone();
    let told: Vec<_> =
        denials.iter().map(|denial| (&denial.protocol[..], denial.destination.clone())).collect();
    assert_eq!(told, expected);
    assert!(denials.iter().all(|denial| denial.rule == RULE), "{denials:?}");
    // The kernel lets nobody who does not ask for it send to everybody.
    assert!(by_udp(OWN_BROADCAST).is_err());
    assert!(by_tcp(OWN_BROADCAST).is_err());
    assert_eq!(asked.load(SeqCst), 0);
    for ip in [PUBLIC, PUBLIC6, NEIGHBOUR6] {
        assert_eq!(by_tcp(ip).unwrap(), "other");
        assert_eq!(by_udp(ip).unwrap(), "other");
    }
}

/// Who may send from everybody's address is told by the kernel of each that it may.
#[test]
fn so_they_are_where_the_host_may_bind_to_any_address() {
    let Some((place, asked)) = place("{}") else { return };
    let ((), _) = place.host(|ready| {
        std::fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
        ready.send(()).unwrap();
    });
    for ip in [OWN, OWN_TOO, OWN_LO, OWN6, OWN6_TOO, OWN_ROUTER6] {
        assert!(by_tcp(ip).is_err(), "{ip}");
        assert!(by_udp(ip).is_err(), "{ip}");
    }
    let denials = place.denials.lock().unwrap().clone();
    assert_eq!(denials.len(), 12);
    assert!(denials.iter().all(|denial| denial.rule == RULE), "{denials:?}");
    assert_eq!(asked.load(SeqCst), 0);
    for ip in [PUBLIC, PUBLIC6] {
        assert_eq!(by_tcp(ip).unwrap(), "other");
        assert_eq!(by_udp(ip).unwrap(), "other");
    }
}

#[test]
fn a_rule_for_an_own_address_opens_it() {
    let Some((place, _)) = place(r#"{"allow": ["93.184.217.1", "93.184.218.0/24", "2606:2800:220::1"]}"#)
    else {
        return;
    };
    for ip in [OWN, OWN6] {
        assert_eq!(by_tcp(ip).unwrap(), "host");
        assert_eq!(by_udp(ip).unwrap(), "host");
        assert_ne!(by_echo(ip), Some(false));
    }
    for ip in [OWN_TOO, OWN_LO] {
        assert!(by_tcp(ip).is_err(), "{ip}");
        assert!(by_udp(ip).is_err(), "{ip}");
    }
    let denials = place.denials.lock().unwrap();
    assert_eq!(denials.len(), 4);
    assert!(denials.iter().all(|denial| denial.rule == RULE), "{denials:?}");
}

#[test]
fn a_port_of_the_hosts_loopback_is_still_reached() {
    let Some((_place, _)) = place(r#"{"hostPorts": [80]}"#) else { return };
    assert_eq!(by_tcp("192.0.0.1").unwrap(), "host");
    assert_eq!(by_tcp("fd76:6f69:6472::1").unwrap(), "host");
}
