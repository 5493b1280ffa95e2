//! Much of a guest's traffic, and for long, between the same namespaces: small counts, or those of `scripts/test --full`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Daemon;
use crate::authority::certify;
use crate::guests::count;
use crate::network::{PUBLIC, RESOLVER, control, create, enter_namespace, name_server, python, serve};

/// A program of this machine, which ends with the test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether there is time for the large counts.
fn full() -> bool {
    count("VOIDRUN_LOAD", 0) == 1
}

/// Counts and hashes what comes until its end, tells both, and sends as much with its hash behind it.
fn checked(mut stream: TcpStream) {
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        hash.update(&buffer[..read]);
        length += read as u64;
    }
    let text = |hash: Sha256| hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    stream.write_all(text(hash).as_bytes()).unwrap();
    let (mut hash, mut random) = (Sha256::new(), fastrand::Rng::with_seed(7));
    while length > 0 {
        let piece = &mut buffer[..(1 << 18).min(length) as usize];
        random.fill(piece);
        hash.update(&*piece);
        length -= piece.len() as u64;
        stream.write_all(piece).unwrap();
    }
    stream.write_all(text(hash).as_bytes()).unwrap();
}

#[test]
fn much_goes_both_ways_with_its_checksum() {
    let many: u64 = if full() { 1 << 30 } else { 64 << 20 };
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    neighbour.run(|| serve((PUBLIC, 9000), checked));
    let daemon = Daemon::new();
    let id = create(&daemon, json!({ "image": "code", "mem": 512 }));
    let program = format!(
        "import hashlib, os, socket, time\n\
         s = socket.create_connection(('{PUBLIC}', 9000))\n\
         block, hash, began = bytearray(os.urandom(1 << 20)), hashlib.sha256(), time.monotonic()\n\
         for number in range({many} >> 20):\n    \
             block[:8] = number.to_bytes(8, 'big')\n    \
             hash.update(block)\n    \
             s.sendall(block)\n\
         s.shutdown(socket.SHUT_WR)\n\
         f = s.makefile('rb', 1 << 18)\n\
         assert f.read(64).decode() == hash.hexdigest(), 'to the host'\n\
         hash, there, left = hashlib.sha256(), time.monotonic(), {many}\n\
         while left:\n    \
             piece = f.read(min(1 << 18, left))\n    \
             assert piece, left\n    \
             hash.update(piece)\n    \
             left -= len(piece)\n\
         assert f.read().decode() == hash.hexdigest(), 'to the guest'\n\
         print(f'{{there - began:.1f}} s to the host, {{time.monotonic() - there:.1f}} s to the guest')\n"
    );
    eprintln!("{} MiB each way: {}", many >> 20, python(&daemon, &id, &program));
}

#[test]
fn connections_come_and_go_for_a_minute() {
    let (many, seconds) = if full() { (5000, 60) } else { (250, 3) };
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    neighbour.run(|| {
        serve((PUBLIC, 9000), |mut stream| {
            let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        });
    });
    let daemon = Daemon::new();
    let id = create(&daemon, json!({ "image": "code", "mem": 512 }));
    let before = control(&daemon, &id).metrics().unwrap();
    // Each is open for two seconds, with bytes there and back at its begin and at its end.
    let program = format!(
        "import asyncio\n\
         async def one(number):\n    \
             await asyncio.sleep(number * {seconds} / {many})\n    \
             r, w = await asyncio.open_connection('{PUBLIC}', 9000)\n    \
             for pause in (2, 0):\n        \
                 w.write(b'%08d' % number)\n        \
                 assert await r.readexactly(8) == b'%08d' % number\n        \
                 await asyncio.sleep(pause)\n    \
             w.write_eof()\n    \
             assert await r.read() == b''\n    \
             w.close()\n\
         async def main():\n    \
             await asyncio.gather(*(one(number) for number in range({many})))\n\
         asyncio.run(main())\n\
         print('all')\n"
    );
    assert_eq!(python(&daemon, &id, &program), "all\n");
    let after = control(&daemon, &id).metrics().unwrap();
    let made = after.network.unwrap().connections - before.network.unwrap().connections;
    assert_eq!(made, many);
    let (fds, kib) = (after.open_fds - before.open_fds, after.own_kib.saturating_sub(before.own_kib));
    eprintln!("{many} connections over {seconds} s: {fds} descriptors and {kib} KiB more than before");
    assert!(fds < 20, "{fds}");
}

#[test]
fn who_does_not_read_holds_nobody_else_up() {
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    // Of the server that the guest does not read from, and of the one that does not read what the guest sends.
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    neighbour.run(move || {
        serve((PUBLIC, 9000), move |mut stream| {
            while let Ok(written) = stream.write(&[0; 1 << 16]) {
                count.fetch_add(written as u64, Ordering::Relaxed);
            }
        });
        serve((PUBLIC, 9001), |stream| {
            std::thread::sleep(Duration::from_mins(5));
            drop(stream);
        });
        serve((PUBLIC, 9002), checked);
    });
    let daemon = Daemon::new();
    let id = create(&daemon, json!({ "image": "code", "mem": 512 }));
    let mut control = control(&daemon, &id);
    let before = control.metrics().unwrap();
    // Eight of each stand still; then a megabyte goes both ways beside them.
    let program = format!(
        "import os, socket, time\n\
         still = [socket.create_connection(('{PUBLIC}', port)) for port in (9000, 9001) for _ in range(8)]\n\
         taken = 0\n\
         for s in still[8:]:\n    \
             s.setblocking(False)\n\
         idle = 0\n\
         while idle < 30:\n    \
             idle += 1\n    \
             for s in still[8:]:\n        \
                 try:\n            \
                     taken += s.send(bytes(1 << 16))\n            \
                     idle = 0\n        \
                 except BlockingIOError:\n            pass\n    \
             time.sleep(0.05)\n\
         s = socket.create_connection(('{PUBLIC}', 9002))\n\
         data = os.urandom(1 << 20)\n\
         s.sendall(data)\n\
         s.shutdown(socket.SHUT_WR)\n\
         back = b''.join(iter(lambda: s.recv(1 << 16), b''))\n\
         assert len(back) == len(data) + 128\n\
         print(taken)\n\
         open('/tmp/still', 'w').close()\n\
         time.sleep(600)\n"
    );
    let body = json!({ "command": format!("python3 - <<'END'\n{program}END\n") });
    daemon.data("POST", &format!("/v1/sandboxes/{id}/commands/run"), body);
    crate::until(|| {
        let body = json!({ "command": "test", "args": ["-e", "/tmp/still"] });
        daemon.data("POST", &format!("/v1/sandboxes/{id}/exec"), body)["exitCode"] == 0
    });
    let after = control.metrics().unwrap();
    let (kib, sent) = (after.own_kib.saturating_sub(before.own_kib), sent.load(Ordering::Relaxed));
    eprintln!(
        "16 streams that stand still: {kib} KiB of the machine's process, {sent} bytes sent by the servers"
    );
    // What the engine holds of each is at most a MiB each way; the rest is in sockets of this kernel, and in the guest's.
    assert!(kib < 40 << 10, "{kib} KiB");
    assert!(sent < 8 * (16 << 20), "{sent}");
    // And so it stays, but for what asks now and then whether there is room again: packets without data.
    std::thread::sleep(Duration::from_secs(1));
    let later = control.metrics().unwrap();
    let more = later.network.unwrap().received_bytes - after.network.unwrap().received_bytes;
    assert!(more < 4096, "{more} bytes");
}

#[test]
fn iperf3_both_ways() {
    let length = if full() { "1G" } else { "64M" };
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    let daemon = Daemon::new();
    let id = create(&daemon, json!({ "image": "code", "mem": 512, "name": "iperf" }));
    // This machine's program, with the libraries that an image has not.
    let output =
        Command::new("ldd").arg("/usr/bin/iperf3").output().expect("iperf3 (scripts/test installs it)");
    let listed = String::from_utf8(output.stdout).unwrap();
    let libraries =
        listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let own = |path: &&str| ["libiperf", "libsctp", "libcrypto"].iter().any(|name| path.contains(name));
    daemon.cli(&["exec", "iperf", "mkdir", "/iperf"]).prints("");
    for file in libraries.filter(own).chain(["/usr/bin/iperf3"]) {
        let real = std::fs::canonicalize(file).unwrap();
        let name = file.rsplit('/').next().unwrap();
        daemon.cli(&["cp", real.to_str().unwrap(), &format!("iperf:/iperf/{name}")]).prints("");
    }
    let _server = neighbour.run(|| {
        let mut command = Command::new("iperf3");
        let mut server = Server::start(command.args(["--server", "--forceflush"]).stdout(Stdio::piped()));
        let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.any(|line| line.contains("Server listening")));
        // To its end, or it would be stopped by a full pipe.
        std::thread::spawn(move || said.for_each(drop));
        server
    });
    let host = PUBLIC.to_string();
    for (way, options) in [("to the host", &[][..]), ("to the guest", &["--reverse"])] {
        let args = [&["--client", &host, "--bytes", length, "--json"], options].concat();
        let body = json!({
            "command": "/iperf/iperf3", "args": args, "env": { "LD_LIBRARY_PATH": "/iperf" }, "timeout": 900,
        });
        let ran = daemon.data("POST", &format!("/v1/sandboxes/{id}/exec"), body);
        assert_eq!(ran["exitCode"], 0, "{way}: {ran}");
        let report: Value = serde_json::from_str(ran["stdout"].as_str().unwrap()).unwrap();
        let received = &report["end"]["sum_received"];
        let rate = received["bits_per_second"].as_f64().unwrap() / 1e9;
        eprintln!("iperf3 {way}: {rate:.2} Gbit/s");
        assert!(received["bytes"].as_u64().unwrap() >= 60 << 20, "{way}: {received}");
    }
}

#[test]
fn https_passes_under_the_name_that_a_rule_allows_alone() {
    let files = tempfile::tempdir().unwrap();
    let neighbour = enter_namespace(files.path());
    name_server(RESOLVER);
    certify(files.path(), &["web.test", "evil.test"]);
    let directory = files.path().to_owned();
    let _server = neighbour.run(move || {
        let server = ["s_server", "-quiet", "-www", "-cert", "server.pem", "-key", "server.key", "-accept"];
        let mut command = Command::new("openssl");
        command.args(server).arg(format!("{PUBLIC}:443")).current_dir(directory).stdin(Stdio::null());
        Server::start(&mut command)
    });
    crate::until(|| TcpStream::connect((PUBLIC, 443)).is_ok());
    let daemon = Daemon::new();
    let ca = std::fs::read_to_string(files.path().join("ca.pem")).unwrap();
    let id = create(
        &daemon,
        json!({ "image": "code", "mem": 512, "caCertificates": ca, "network": { "allow": ["web.test"] } }),
    );
    let curl = |arguments: &[&str]| {
        let args = [&["-sS", "--max-time", "30"], arguments].concat();
        let body = json!({ "command": "curl", "args": args });
        daemon.data("POST", &format!("/v1/sandboxes/{id}/exec"), body)
    };
    let page = curl(&["https://web.test/"]);
    assert!(page["exitCode"] == 0 && page["stdout"].as_str().unwrap().contains("TLSv1.3"), "{page}");
    // The same server by an allowed address, and under another name that its certificate has as well.
    let resolve = format!("evil.test:443:{PUBLIC}");
    let spoofed = curl(&["--resolve", &resolve, "https://evil.test/"]);
    assert_ne!(spoofed["exitCode"], 0, "{spoofed}");
    let denials = control(&daemon, &id).denials(0).unwrap();
    let rule = "allow: no rule for the server name evil.test";
    assert!(denials.iter().any(|denial| denial.denial.rule == rule), "{denials:?}");
}
