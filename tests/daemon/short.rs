//! What the host is short of: room on its disk, and descriptors.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::guests::{Store, descriptors};
use crate::{Daemon, answer, until};

impl Daemon {
    /// Makes a sandbox and removes it, or fails; the answer's status and detail.
    #[track_caller]
    fn tries_to_create(&self) -> (u16, String) {
        let wanted = json!({ "name": "new", "image": "debian", "mem": 256 });
        let (status, answer) = self.ask("POST", "/v1/sandboxes", wanted);
        if status < 300 {
            self.data("DELETE", "/v1/sandboxes/new", Value::Null);
        }
        self.refuses(404, "GET", "/v1/sandboxes/new", Value::Null);
        (status, answer["detail"].as_str().unwrap_or_default().to_owned())
    }

    #[track_caller]
    fn has_alone(&self, sandboxes: usize) {
        until(|| self.store.sandboxes().len() == sandboxes && self.store.machines().len() == sandboxes);
    }
}

#[test]
fn room_on_the_disk() {
    let daemon = Daemon::on(Store::small(64));
    daemon.create("dev");
    daemon.create("other");
    let path = daemon.store.path().join("fill");
    let mut fill = File::create(&path).unwrap();
    while fill.write_all(&[1; 4096]).is_ok() {}
    let pages = fill.metadata().unwrap().len() / 4096;
    // No room for the record, for the machine's last words, for the disk's first page, for what the guest writes first.
    for free in [0, 3, 5, 6] {
        fill.set_len((pages - free) * 4096).unwrap();
        let (status, said) = daemon.tries_to_create();
        println!("{free} pages free: {status} {said}");
        // The guest is not told why its disk fails.
        let told = ["No space left on device", "I/O error"].iter().any(|why| said.contains(why));
        assert!([500, 507].contains(&status) && told, "{status} {said}");
        daemon.has_alone(2);
    }
    while fill.write_all(&[1; 4096]).is_ok() {}

    let write = json!({ "command": "dd if=/dev/zero of=/root/big bs=1M count=64 conv=fsync", "timeout": 60 });
    let written = daemon.data("POST", "/v1/sandboxes/dev/exec", write);
    let said = written["stderr"].as_str().unwrap();
    // The second where the guest's file system has made itself read-only before.
    let told = ["Input/output error", "Read-only file system"].iter().any(|why| said.contains(why));
    assert!(written["exitCode"] == 1 && told, "{written}");
    // What the guest's own file system makes of it is its affair: the machine answers, and others are not touched by it.
    assert_eq!((daemon.state("dev").as_str(), daemon.running("dev")), ("running", 0));
    daemon.cli(&["exec", "other", "echo", "fine"]).prints("fine\n");
    // A name that cannot be written down is not taken.
    let detail = daemon.refuses(507, "PATCH", "/v1/sandboxes/dev", json!({ "name": "another" }));
    assert!(detail.contains("spec.json") && detail.contains("No space left"), "{detail}");
    assert_eq!(daemon.state("dev"), "running");

    // What is removed makes room, and needs none.
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    until(|| daemon.store.sandboxes().len() == 1);
    drop(fill);
    std::fs::remove_file(path).unwrap();
    assert_eq!(daemon.tries_to_create(), (201, String::new()));
    daemon.cli(&["rm", "-f", "other"]).prints("other\n");
    daemon.is_clean();
}

fn with_descriptors(limit: usize) -> Daemon {
    let store = Store::new();
    let script = format!("ulimit -n {limit} && exec \"$0\" daemon");
    let command = store.command_of("/bin/sh", &["-c", &script, env!("CARGO_BIN_EXE_voidrun")]);
    Daemon::by(command, store)
}

#[test]
fn descriptors_of_the_daemon() {
    const LIMIT: usize = 96;
    // Too few for any machine.
    let (status, said) = with_descriptors(40).tries_to_create();
    assert!(
        status == 503 && said.contains("Too many open files") && said.contains("ulimit"),
        "{status} {said}"
    );

    let daemon = with_descriptors(LIMIT);
    daemon.create("dev");
    daemon.cli(&["exec", "dev", "true"]).prints("");
    let open = || descriptors(daemon.process.id()).len();
    until(|| descriptors(daemon.process.id()).iter().filter(|one| one.starts_with("socket:")).count() < 8);
    let idle = open();
    // What is released in the background may hold one for a moment.
    let held = |count: usize| -> Vec<UnixStream> {
        let clients = (0..count).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
        until(|| open() == idle + count);
        clients
    };
    println!("{idle} descriptors of {LIMIT}");
    // One is the request's own.
    for free in [0, 1, 2, 3, 5, 8, 12, 16] {
        let clients = held(LIMIT - idle - 1 - free);
        let (status, said) = daemon.tries_to_create();
        println!("{free} free: {status} {said}");
        assert!(status == 201 || status == 503 && said.contains("Too many open files"), "{status} {said}");
        if free == 0 {
            let command = json!({ "command": "true" });
            let said = daemon.refuses(503, "POST", "/v1/sandboxes/dev/exec", command);
            assert!(said.contains("the sandbox dev") && said.contains("Too many open files"), "{said}");
        }
        drop(clients);
        until(|| open() == idle);
    }
    // Nothing half-made is left when there are some again.
    daemon.has_alone(1);
    // Where there is none for it, a client waits until there is one.
    let mut clients = held(LIMIT - idle);
    let waits = daemon.send("GET", "/v1/sandboxes/dev", "", &Value::Null);
    waits.set_nonblocking(true).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let nothing = std::io::Read::read(&mut &waits, &mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    clients.truncate(1);
    waits.set_nonblocking(false).unwrap();
    assert_eq!(answer(waits).0, 200);
    drop(clients);
    assert_eq!(daemon.tries_to_create(), (201, String::new()));
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    daemon.is_clean();
}
