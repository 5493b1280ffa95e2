//! Published ports: servers on a guest's loopback, reached from this machine.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::{Daemon, PATIENCE, until};

/// Answers how many bytes came up to the end of file.
const COUNTER: &str = r#"
import socket
server = socket.create_server(("127.0.0.1", 9000))
while True:
    client, _ = server.accept()
    count = 0
    while piece := client.recv(65536):
        count += len(piece)
    client.sendall(b"%d\n" % count)
    client.close()
"#;

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The body of an answer; none where the server has not answered.
fn get(port: u16, path: &str) -> Option<Vec<u8>> {
    let mut stream = connect(port);
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    body(stream)
}

fn body(mut stream: TcpStream) -> Option<Vec<u8>> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    assert!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer[..head]));
    Some(answer.split_off(head + 4))
}

/// A port that the kernel gives nobody who does not ask for this very one.
pub(crate) fn rare_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first = range.split_whitespace().next().unwrap().parse().unwrap();
    fastrand::u16(1024..first)
}

/// Nobody listens there.
#[track_caller]
fn is_closed(port: u16) {
    let error = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn port_of(port: &Value) -> u16 {
    port["hostPort"].as_u64().unwrap().try_into().unwrap()
}

impl Daemon {
    fn serve(&self) {
        let command = "cd /srv && exec python3 -m http.server --bind 127.0.0.1 8000";
        let (status, answer) =
            self.ask("POST", "/v1/sandboxes/web/commands/run", json!({ "command": command }));
        assert_eq!(status, 200, "{answer}");
    }

    fn ports(&self) -> Value {
        self.data("GET", "/v1/sandboxes/web/ports", Value::Null)
    }
}

#[test]
fn servers_on_the_loopback_of_a_guest() {
    let daemon = Daemon::new();
    let (fixed, taken) = std::iter::repeat_with(rare_port)
        .find_map(|port| Some((port, TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?)))
        .unwrap();
    let web = json!({
        "name": "web", "image": "code", "mem": 512,
        "ports": [{ "port": 8000, "hostPort": fixed }, { "protocol": "http", "port": 8000 }],
    });
    // Taken by somebody else: nothing is made.
    let said = daemon.refuses(409, "POST", "/v1/sandboxes", web.clone());
    assert!(said.contains(&format!("127.0.0.1:{fixed} is taken")) && said.contains("ss -ltnp"), "{said}");
    daemon.is_clean();
    drop(taken);
    let made = daemon.data("POST", "/v1/sandboxes", web);
    let picked = port_of(&made["ports"][1]);
    assert_eq!((port_of(&made["ports"][0]), &made["ports"][1]["protocol"]), (fixed, &json!("http")));
    let urls = daemon.data("GET", "/v1/sandboxes/web/public-urls", Value::Null);
    assert_eq!(urls[1], json!({ "port": 8000, "url": format!("http://127.0.0.1:{picked}") }));
    assert_eq!(daemon.ports(), made["ports"]);
    assert!(
        daemon.cli(&["ps"]).text().contains(&format!("127.0.0.1:{fixed}->8000, 127.0.0.1:{picked}->8000"))
    );

    // Before anybody listens in the guest a client is refused at once.
    assert_eq!(connect(fixed).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..5_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(dir.path().join("data"), &content).unwrap();
    daemon.cli(&["cp", dir.path().join("data").to_str().unwrap(), "web:/srv/data"]).ends(0, &[]);
    daemon.cli(&["exec", "web", "sh", "-c", "echo small > /srv/small"]).prints("");
    daemon.serve();
    until(|| get(fixed, "/small").is_some());
    for port in [fixed, picked] {
        assert!(get(port, "/data").unwrap() == content);
    }
    // Many at once: all are open before the first one asks.
    let mut clients: Vec<TcpStream> = (0..50).map(|_| connect(fixed)).collect();
    for client in &mut clients {
        client.write_all(b"GET /small HTTP/1.0\r\n\r\n").unwrap();
    }
    for client in clients {
        assert_eq!(body(client).unwrap(), b"small\n");
    }

    // One that comes while it runs, and half of a connection that ends before the other.
    let counter = json!({ "command": "exec python3 -c \"$CODE\"", "env": { "CODE": COUNTER } });
    daemon.ask("POST", "/v1/sandboxes/web/commands/run", counter);
    let added = daemon.cli(&["port", "add", "web", "9000"]).text();
    let counted: u16 =
        added.trim().strip_prefix("127.0.0.1:").unwrap().strip_suffix("->9000").unwrap().parse().unwrap();
    let count = || {
        let mut stream = connect(counted);
        stream.write_all(&[7; 300_000]).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    };
    until(|| count().as_deref() == Some("300000\n"));
    let again = json!({ "port": 1, "hostPort": fixed });
    assert!(
        daemon
            .refuses(409, "POST", "/v1/sandboxes/web/ports", again.clone())
            .contains("port of the sandbox web")
    );
    let other = json!({ "name": "other", "image": "debian", "mem": 256, "ports": [again] });
    assert!(daemon.refuses(409, "POST", "/v1/sandboxes", other).contains("port of the sandbox web"));
    assert_eq!(daemon.store.sandboxes().len(), 1);

    // They outlive the daemon, and what is connected does.
    let mut open = connect(picked);
    open.write_all(b"GET /small HT").unwrap();
    let ports = daemon.ports();
    let daemon = daemon.kill();
    assert_eq!(get(fixed, "/small").unwrap(), b"small\n");
    open.write_all(b"TP/1.0\r\n\r\n").unwrap();
    assert_eq!(body(open).unwrap(), b"small\n");
    assert_eq!(daemon.ports(), ports);
    daemon.cli(&["port", "rm", "web", &counted.to_string()]).prints(&format!("127.0.0.1:{counted}->9000\n"));
    is_closed(counted);
    daemon.cli(&["port", "rm", "web", &counted.to_string()]).ends(1, &["no port", "voidrun port ls web"]);
    assert_eq!(get(fixed, "/small").unwrap(), b"small\n");

    // They go with the machine, and come again with the next one.
    daemon.cli(&["stop", "web"]).prints("web\n");
    is_closed(fixed);
    is_closed(picked);
    assert_eq!(daemon.data("GET", "/v1/sandboxes/web/public-urls", Value::Null), json!([]));
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, fixed)).unwrap();
    let also_taken = TcpListener::bind((Ipv4Addr::LOCALHOST, picked)).unwrap();
    daemon.cli(&["start", "web"]).ends(1, &[&*format!("127.0.0.1:{fixed} is taken"), "ss -ltnp"]);
    assert_eq!(daemon.state("web"), "stopped");
    drop(taken);
    daemon.cli(&["start", "web"]).prints("web\n");
    // What was only picked gives way.
    let now = daemon.ports();
    assert_eq!(port_of(&now[0]), fixed);
    assert_ne!(port_of(&now[1]), picked);
    drop(also_taken);
    daemon.serve();
    until(|| get(fixed, "/small").is_some());
    assert_eq!(get(port_of(&now[1]), "/small").unwrap(), b"small\n");
    daemon.cli(&["rm", "-f", "web"]).prints("web\n");
    daemon.is_clean();
    is_closed(fixed);
}

#[test]
fn what_a_run_has_picked_is_told() {
    let daemon = Daemon::new();
    let ran = daemon.cli(&[
        "run",
        "-p",
        "8000",
        "-p",
        "127.0.0.1:0:9000",
        "--memory",
        "256m",
        "debian",
        "echo",
        "ran",
    ]);
    assert_eq!((ran.code, &*ran.stdout), (Some(0), &b"ran\n"[..]), "{ran:?}");
    let told: Vec<&str> = ran.stderr.lines().collect();
    assert!(
        told.len() == 2
            && told[0].ends_with("->8000")
            && told[1].starts_with("127.0.0.1:")
            && told[1].ends_with("->9000"),
        "{told:?}"
    );
    // Of one that does not run the record alone is changed.
    daemon.create("dev");
    daemon.cli(&["stop", "dev"]).prints("dev\n");
    let added = daemon.cli(&["port", "add", "dev", "8000"]).text();
    let port = added.trim().strip_suffix("->8000").unwrap();
    let listed = daemon.cli(&["port", "ls", "dev"]).text();
    assert!(listed.contains(port) && listed.lines().last().unwrap().ends_with('-'), "{listed}");
    std::net::TcpStream::connect(port).unwrap_err();
    daemon.cli(&["start", "dev"]).prints("dev\n");
    std::net::TcpStream::connect(port).unwrap();
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    daemon.is_clean();
}
