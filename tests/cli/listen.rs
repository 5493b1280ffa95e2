//! `voidrun daemon --listen`: who may come in by TCP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::daemon::Site;
use crate::support::Ran;

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// A daemon that listens at a port of its own.
struct Listening {
    site: Site,
    process: Child,
    address: String,
    log: BufReader<std::process::ChildStderr>,
}

fn key_file(site: &Site, content: &str, mode: u32) -> String {
    let path = site.voidrun.path("key");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}

impl Listening {
    fn new() -> Self {
        let site = Site::new();
        let file = key_file(&site, &format!("{KEY}\n"), 0o600);
        let mut command = site.command(&["daemon", "--listen", "127.0.0.1:0", "--key-file", &file]);
        let mut process = command.env("VOIDRUN_LOG", "trace").stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("serves") {
            assert!(log.read_line(&mut said).unwrap() > 0, "{said}");
        }
        let (_, address) = said.split_once("http://").unwrap();
        let address = address.split_whitespace().next().unwrap().to_owned();
        Self { site, process, address, log }
    }

    /// Status and answer of a request with these lines in its head.
    fn ask(&self, path: &str, head: &[&str]) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = head.join("\r\n");
        let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.to_ascii_lowercase().contains("x-request-id: "), "{head}");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn with_the_key_from_this_machine_and_not_from_a_browser() {
    let mut daemon = Listening::new();
    let host = format!("Host: {}", daemon.address);
    let key = format!("X-API-Key: {KEY}");
    for path in ["/healthz", "/version", "/metrics", "/v1/sandboxes", "/api/sandboxes", "/nothing"] {
        let expected = if path == "/nothing" { 404 } else { 200 };
        assert_eq!(daemon.ask(path, &[&host, &key]).0, expected, "{path}");
        for (status, word, head) in [
            (401, "X-API-Key", vec![&*host]),
            (401, "X-API-Key", vec![&host, "X-API-Key: 0123456789abcdef0123456789abcdeF"]),
            (403, "Origin", vec![&host, &key, "Origin: http://localhost:3000"]),
            (403, "Host", vec!["Host: sandbox.example.org", &key]),
        ] {
            let (found, problem) = daemon.ask(path, &head);
            assert_eq!((found, &problem["status"]), (status, &status.into()), "{path} {head:?}");
            assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
        }
    }
    // The key in the address: of a WebSocket alone. What is wrong with this one is told behind the guard.
    let path = format!("/api/sandboxes/none/pty?apiKey={KEY}");
    assert_eq!(daemon.ask(&path, &[&host]).0, 401);
    let upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
    let upgrade = [&upgrade[..], &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", &host]].concat();
    assert_eq!(daemon.ask(&path, &upgrade).0, 404);
    assert_eq!(daemon.ask("/api/sandboxes/none/pty?apiKey=wrong", &upgrade).0, 401);

    // On the Unix socket nothing of this holds.
    assert_eq!(
        Ran::from(daemon.site.command(&["ps", "--json"]).output().unwrap()).json(),
        serde_json::json!([])
    );
    daemon.process.kill().unwrap();
    let mut log = String::new();
    daemon.log.read_to_string(&mut log).unwrap();
    assert!(log.contains("path=\"/api/sandboxes/none/pty\"") && !log.contains(KEY), "{log}");
}

#[test]
fn what_would_let_others_in_is_refused() {
    let site = Site::new();
    let run =
        |arguments: &[&str]| Ran::from(site.command(&[&["daemon"], arguments].concat()).output().unwrap());
    let good = key_file(&site, KEY, 0o600);
    for address in ["0.0.0.0:0", "192.0.2.1:7070", "[::]:0"] {
        run(&["--listen", address, "--key-file", &good])
            .fails(2, &["--listen", address, "loopback", "ssh -L"]);
    }
    run(&["--listen", "7070", "--key-file", &good]).fails(2, &["127.0.0.1:7070"]);
    run(&["--listen", "127.0.0.1:0"]).fails(2, &["--key-file"]);
    run(&["--key-file", &good]).fails(2, &["--listen"]);
    run(&["--detach", "--listen", "127.0.0.1:0", "--key-file", &good]).fails(2, &["--detach"]);

    let listen = |file: &str| run(&["--listen", "127.0.0.1:0", "--key-file", file]);
    listen(&key_file(&site, KEY, 0o644)).fails(1, &["key", "mode 0644", "chmod 600"]);
    listen(&key_file(&site, "short", 0o600)).fails(1, &["key", "16 to 1024", "openssl rand -hex 32"]);
    listen("/nonexistent/key").fails(1, &["/nonexistent/key", "No such file"]);
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let good = key_file(&site, KEY, 0o600);
    run(&["--listen", &taken.to_string(), "--key-file", &good])
        .fails(1, &["cannot listen at", &taken.to_string()]);
    drop(holder);
}
