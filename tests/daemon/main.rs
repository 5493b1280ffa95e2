//! The daemon with real guests: needs a KVM that can run one, as `scripts/lab` has it.
//!
//! VOIDRUN_HOME is a store with the images `code` and `debian`, and VOIDRUN_KERNEL a guest kernel; `scripts/test` sees to both.
//! Each test has a store of its own that shares the images, and a daemon of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod authority;
mod balloon;
mod code;
mod cp;
mod crash;
mod ending;
mod events;
mod exec;
mod files;
#[path = "../support/guests.rs"]
mod guests;
mod inherit;
mod job;
mod kills;
mod life;
mod load;
mod lost;
mod network;
#[path = "../support/patched.rs"]
mod patched;
mod ports;
mod readme;
#[path = "../support/readme.rs"]
mod readme_lines;
mod release;
mod reset;
mod short;
mod sleep;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
mod terminal;
mod traffic;
mod udp;
mod warm;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use guests::{Ran, Store};

/// What ends by itself ends long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon on a store of its own.
struct Daemon {
    store: Store,
    process: Child,
}

impl Daemon {
    fn new() -> Self {
        Self::on(Store::new())
    }

    /// Returns when it can be asked.
    fn on(store: Store) -> Self {
        let command = store.command(&["daemon"]);
        Self::by(command, store)
    }

    fn by(mut command: Command, store: Store) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("serves") {
            assert!(log.read_line(&mut said).unwrap() > 0, "{said}");
        }
        // A pipe that is full would hold it up.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { store, process }
    }

    /// With this in its configuration.
    fn configured(text: &str) -> Self {
        let store = Store::new();
        let dir = store.path().join(".config/voidrun");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), text).unwrap();
        Self::on(store)
    }

    /// A command line to its end.
    fn cli(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.store.command(arguments).output().unwrap())
    }

    /// A sandbox of this name, of the image debian.
    fn create(&self, name: &str) -> String {
        let id = self.cli(&["create", "--name", name, "--memory", "256m", "debian"]).text();
        id.trim_end().to_owned()
    }

    fn socket(&self) -> PathBuf {
        socket_of(&self.store).unwrap()
    }

    /// The beginning of an answer has not been read yet. `HTTP/1.0`: it ends with the connection.
    fn send(&self, method: &str, path: &str, headers: &str, body: &Value) -> UnixStream {
        send(&self.socket(), method, path, headers, body)
    }

    /// Status and body.
    fn raw(&self, method: &str, path: &str, headers: &str, body: &Value) -> (u16, String) {
        answer(self.send(method, path, headers, body))
    }

    fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.raw(method, path, "", &body);
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")))
    }

    /// The answer's `data`, of a request that succeeds.
    #[track_caller]
    fn data(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, mut answer) = self.ask(method, path, body);
        assert!(status < 300, "{status}: {answer}");
        answer["data"].take()
    }

    /// The answer's `detail`, of a request that is refused.
    #[track_caller]
    fn refuses(&self, status: u16, method: &str, path: &str, body: Value) -> String {
        let (found, answer) = self.ask(method, path, body);
        assert_eq!(found, status, "{answer}");
        assert_eq!(answer["message"], answer["detail"]);
        answer["detail"].as_str().unwrap().to_owned()
    }

    fn state(&self, sandbox: &str) -> String {
        self.data("GET", &format!("/v1/sandboxes/{sandbox}"), Value::Null)["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// So many commands run in a sandbox.
    fn running(&self, name: &str) -> usize {
        let list = self.data("GET", &format!("/v1/sandboxes/{name}/commands/list"), Value::Null);
        list.as_array().unwrap().iter().filter(|command| command["running"] == true).count()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Kills it and starts another one.
    fn kill(self) -> Self {
        Self::on(self.killed())
    }

    /// Kills it, moves its store, and starts another one there.
    fn moved(self) -> Self {
        Self::on(self.killed().moved())
    }

    fn killed(mut self) -> Store {
        self.signal(Signal::KILL);
        self.process.wait().unwrap();
        std::mem::replace(&mut self.store, Store::empty())
    }

    /// Nothing of any sandbox is left; what goes in the background goes soon.
    #[track_caller]
    fn is_clean(&self) {
        until(|| self.store.sandboxes().is_empty());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What a test that has failed has left: its machines would outlive it.
        for sandbox in self.store.sandboxes() {
            if let Ok(stream) = UnixStream::connect(sandbox.join("control.sock"))
                && let Ok(mut client) = vmm::control::Client::new(stream, PATIENCE)
            {
                let _ = client.kill();
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// That of the daemon of a store, if it has one.
fn socket_of(store: &Store) -> Option<PathBuf> {
    let sockets = std::fs::read_dir(store.path().join("voidrun")).unwrap();
    let mut sockets = sockets.map(|entry| entry.unwrap().path());
    sockets.find(|path| path.extension().is_some_and(|end| end == "sock"))
}

fn send(socket: &Path, method: &str, path: &str, headers: &str, body: &Value) -> UnixStream {
    send_by(UnixStream::connect(socket).unwrap(), method, path, headers, body)
}

fn send_by(mut stream: UnixStream, method: &str, path: &str, headers: &str, body: &Value) -> UnixStream {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    // In one piece: an answer that needs no body may come, and the connection end, before it is sent.
    let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Status and body.
fn answer(mut stream: UnixStream) -> (u16, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.to_ascii_lowercase().contains("x-request-id: "), "{head}");
    (status, body.to_owned())
}

/// Waits for what nothing tells of.
#[track_caller]
fn until(mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "it has not happened");
        std::thread::sleep(Duration::from_millis(20));
    }
}
