//! How much of its network a sandbox may use, and how much it has used.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use net::engine::Limits;
use serde_json::{Value, json};

use super::{METADATA, Neighbour, PUBLIC, control, create, enter_namespace, python, serve, tries};
use crate::{Daemon, PATIENCE};

/// Bytes a second.
const RATE: usize = 64 << 10;
/// So much may be saved up, in bytes.
const SAVED: usize = 64 << 10;

/// What the guest does for each length that it is told: it sends so much, takes as much, and says so.
const PEER: &str = "import socket\n\
    s = socket.create_connection(('93.184.216.34', 9000))\n\
    def take(count):\n    \
        while count:\n        \
            count -= len(s.recv(min(count, 65536)))\n\
    while length := int.from_bytes(s.recv(4), 'big'):\n    \
        s.sendall(bytes(length))\n    \
        take(length)\n    \
        s.sendall(b'.')\n";

/// Serves what the tests need on the other machine, and gives each [`PEER`] that connects.
fn serve_there(neighbour: &Neighbour) -> mpsc::Receiver<TcpStream> {
    let (connected, peers) = mpsc::channel();
    neighbour.run(move || {
        serve((PUBLIC, 8080), |_| ());
        serve((PUBLIC, 9000), move |peer| connected.send(peer).unwrap());
    });
    peers
}

/// How long so many bytes take from the guest, and to it.
fn exchange(peer: &mut TcpStream, length: usize) -> [Duration; 2] {
    let began = Instant::now();
    peer.write_all(&u32::try_from(length).unwrap().to_be_bytes()).unwrap();
    let mut bytes = vec![0; length];
    peer.read_exact(&mut bytes).unwrap();
    let sent = began.elapsed();
    peer.write_all(&bytes).unwrap();
    peer.read_exact(&mut [0]).unwrap();
    [sent, began.elapsed() - sent]
}

/// The least time that so many bytes take.
fn least(length: usize) -> Duration {
    Duration::from_secs_f64((length - SAVED) as f64 / RATE as f64)
}

/// Seconds that so many connections take, one after the other.
fn connects(daemon: &Daemon, id: &str, count: usize) -> f64 {
    let program = format!(
        "import socket, time\n\
         began = time.monotonic()\n\
         for _ in range({count}):\n    \
             socket.create_connection(('{PUBLIC}', 8080), 60).close()\n\
         print(time.monotonic() - began)\n"
    );
    python(daemon, id, &program).trim_end().parse().unwrap()
}

#[test]
fn limits_hold_at_once_and_until_they_are_lifted() {
    const LENGTH: usize = 6 * RATE;
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    let peers = serve_there(&neighbour);
    let daemon = Daemon::new();
    let id = create(&daemon, json!({ "image": "code", "mem": 512, "name": "dev" }));
    let path = "/v1/sandboxes/dev";
    let command = format!("python3 -c \"{PEER}\"");
    daemon.data("POST", &format!("{path}/commands/run"), json!({ "command": command }));
    let mut peer = peers.recv_timeout(PATIENCE).unwrap();
    let limit = |daemon: &Daemon, limits: &[&str]| daemon.cli(&[&["network", "dev"], limits].concat()).text();

    // It holds for what is open already, both ways.
    let free = exchange(&mut peer, LENGTH);
    assert_eq!(limit(&daemon, &["--net-rate", "64KiB"]), "public\nnet-rate 64KiB\n");
    let slow = exchange(&mut peer, LENGTH);
    assert!(slow.iter().all(|took| *took >= least(LENGTH)), "{slow:?}");
    assert!(free.iter().all(|took| *took < least(LENGTH)), "{free:?}");

    // A machine that was told otherwise is told again by the next daemon.
    control(&daemon, &id).set_limits(Limits::default()).unwrap();
    let daemon = daemon.kill();
    crate::until(|| exchange(&mut peer, 3 * SAVED)[0] >= least(3 * SAVED));
    // As is one that is started again, of connections.
    assert_eq!(limit(&daemon, &["--net-rate", "0", "--net-connections", "1"]), "public\nnet-connections 1\n");
    let again = exchange(&mut peer, LENGTH);
    assert!(again.iter().all(|took| *took < least(LENGTH)), "{again:?}");
    // At one a second: one was saved up, and another one may come at any moment.
    let connected = connects(&daemon, &id, 5);
    assert!(connected >= 2.9, "{connected} s");
    daemon.cli(&["stop", "dev"]).text();
    daemon.cli(&["start", "dev"]).text();
    let connected = connects(&daemon, &id, 4);
    assert!(connected >= 1.9, "{connected} s");
    let limits = json!({ "bytesPerSecond": 5_000_000, "connectionsPerSecond": 0 });
    let shown = daemon.data("PATCH", path, json!({ "network": { "limits": limits } }));
    assert_eq!(shown["network"], json!({ "mode": "public", "limits": { "bytesPerSecond": 5_000_000 } }));
    let connected = connects(&daemon, &id, 5);
    assert!(connected < 2.9, "{connected} s");

    let refused = [
        (json!({ "bytesPerSecond": -1 }), "network.limits.bytesPerSecond: "),
        (json!({ "connectionsPerSecond": "many" }), "network.limits.connectionsPerSecond: "),
    ];
    for (limits, field) in refused {
        let wrong = daemon.refuses(422, "PATCH", path, json!({ "network": { "limits": limits } }));
        assert!(wrong.starts_with(field), "{wrong}");
    }
}

/// A sample of `/metrics`.
fn metric(daemon: &Daemon, name: &str) -> usize {
    let (_, text) = daemon.raw("GET", "/metrics", "", &Value::Null);
    let sample = text.lines().find_map(|line| line.strip_prefix("voidrun_network_")?.strip_prefix(name));
    sample.unwrap_or_else(|| panic!("{name} is not in {text}")).trim().parse().unwrap()
}

#[test]
fn what_networks_do_is_counted() {
    const LENGTH: usize = 1 << 20;
    const CONNECTIONS: &str = "connections_total";
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    let peers = serve_there(&neighbour);
    let daemon = Daemon::new();
    let body = json!({ "image": "code", "mem": 512, "name": "dev" });
    let id = create(&daemon, body.clone());
    let connect = |daemon: &Daemon, id: &str| {
        assert_eq!(python(daemon, id, &tries(PUBLIC, 8080)), "connected\n");
    };

    let command = format!("python3 -c \"{PEER}\"");
    daemon.data("POST", "/v1/sandboxes/dev/commands/run", json!({ "command": command }));
    let mut peer = peers.recv_timeout(PATIENCE).unwrap();
    exchange(&mut peer, LENGTH);
    for direction in ["to_guest", "from_guest"] {
        let bytes = metric(&daemon, &format!("bytes_total{{direction=\"{direction}\"}}"));
        assert!((LENGTH..2 * LENGTH).contains(&bytes), "{bytes} {direction}");
    }
    assert_eq!((metric(&daemon, CONNECTIONS), metric(&daemon, "denials_total")), (1, 0));
    python(&daemon, &id, &tries(METADATA, 80));
    assert!(metric(&daemon, "denials_total") >= 1);

    // Also of a machine that has ended, by itself or not, since anybody has asked.
    connect(&daemon, &id);
    daemon.cli(&["stop", "dev"]).text();
    assert_eq!(metric(&daemon, CONNECTIONS), 2);
    daemon.cli(&["start", "dev"]).text();
    connect(&daemon, &id);
    daemon.cli(&["rm", "--force", "dev"]).text();
    crate::until(|| metric(&daemon, CONNECTIONS) == 3);

    // Another daemon begins anew, and so does what it counts of a machine that it finds.
    let id = create(&daemon, body);
    connect(&daemon, &id);
    let daemon = daemon.kill();
    assert_eq!(metric(&daemon, CONNECTIONS), 0);
    connect(&daemon, &id);
    assert_eq!(metric(&daemon, CONNECTIONS), 1);
}
