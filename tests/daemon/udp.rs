//! Published ports of UDP: a server on a guest's loopback, reached from this machine.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::ports::rare_port;
use crate::{Daemon, until};

const ECHO: &str = r#"
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 9000))
while True:
    data, client = server.recvfrom(65536)
    server.sendto(data, client)
"#;
const PORTS: &str = "/v1/sandboxes/dns/ports";

fn client(port: u16) -> UdpSocket {
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    client
}

/// Asks until this comes back: datagrams may be lost. What comes beside is what this client has asked before.
fn echoes(client: &UdpSocket, name: &str, data: &[u8]) {
    let datagram = [name.as_bytes(), data].concat();
    let mut answer = vec![0; 1 << 16];
    until(|| {
        client.send(&datagram).unwrap();
        match client.recv(&mut answer) {
            Ok(length) => {
                assert!(answer[..length].starts_with(name.as_bytes()), "it is another client's");
                answer[..length] == datagram
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    });
}

fn port_of(port: &Value) -> u16 {
    port["hostPort"].as_u64().unwrap().try_into().unwrap()
}

#[test]
fn a_server_of_datagrams_on_the_loopback_of_a_guest() {
    let daemon = Daemon::new();
    let (fixed, taken) = std::iter::repeat_with(rare_port)
        .find_map(|port| Some((port, UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?)))
        .unwrap();
    let port = json!({ "protocol": "udp", "port": 9000, "hostPort": fixed });
    let sandbox = json!({
        "name": "dns", "image": "code", "mem": 512, "network": { "mode": "none" },
        "ports": [port, { "protocol": "udp", "port": 9000 }],
    });
    let said = daemon.refuses(409, "POST", "/v1/sandboxes", sandbox.clone());
    assert!(said.contains(&format!("127.0.0.1:{fixed} is taken")) && said.contains("ss -lunp"), "{said}");
    drop(taken);
    let made = daemon.data("POST", "/v1/sandboxes", sandbox);
    let picked = port_of(&made["ports"][1]);
    assert_eq!(made["ports"][1]["url"], format!("udp://127.0.0.1:{picked}"));
    assert_eq!(daemon.data("GET", PORTS, Value::Null), made["ports"]);
    let one = client(fixed);
    one.send(b"nobody is there").unwrap();
    let serve = || {
        let body = json!({ "command": "exec python3 -c \"$CODE\"", "env": { "CODE": ECHO } });
        assert_eq!(daemon.ask("POST", "/v1/sandboxes/dns/commands/run", body).0, 200);
    };
    serve();

    let long: Vec<u8> = (0..60_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (two, three) = (client(fixed), client(picked));
    one.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    std::thread::scope(|scope| {
        let clients = [("nobody is there", &one), ("two", &two), ("three", &three)];
        for (name, client) in clients {
            let long = &long;
            scope.spawn(move || {
                for index in 0..20 {
                    echoes(client, name, format!(" {index}").as_bytes());
                }
                echoes(client, name, long);
                echoes(client, name, b"");
            });
        }
    });

    // They outlive the daemon, and so do their clients.
    let ports = daemon.data("GET", PORTS, Value::Null);
    let daemon = daemon.kill();
    echoes(&two, "two", b" again");
    echoes(&client(fixed), "four", b"");
    until(|| daemon.data("GET", PORTS, Value::Null) == ports);

    // One of TCP at the same port is another one; both go by its number.
    let added = daemon.cli(&["port", "add", "dns", "9000/udp"]).text();
    let more: u16 =
        added.trim().strip_prefix("127.0.0.1:").unwrap().strip_suffix("->9000/udp").unwrap().parse().unwrap();
    daemon.cli(&["port", "add", "dns", &format!("{more}:9000")]).prints(&format!("127.0.0.1:{more}->9000\n"));
    daemon.refuses(409, "POST", PORTS, json!({ "protocol": "udp", "port": 1, "hostPort": more }));
    let five = client(more);
    echoes(&five, "five", b"");
    daemon.cli(&["port", "rm", "dns", &more.to_string()]).ends(0, &[]);
    // What was on its way comes first.
    until(|| {
        let _ = five.send(b"five");
        five.recv(&mut [0; 64]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, more)).unwrap_err();
    echoes(&two, "two", b" still");

    daemon.cli(&["stop", "dns"]).prints("dns\n");
    UdpSocket::bind((Ipv4Addr::LOCALHOST, fixed)).unwrap();
    daemon.cli(&["start", "dns"]).prints("dns\n");
    assert_eq!(daemon.data("GET", PORTS, Value::Null), ports);
    daemon.cli(&["rm", "-f", "dns"]).prints("dns\n");
    daemon.is_clean();
}
