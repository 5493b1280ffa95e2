//! A daemon that is killed in the middle of all that it does, again and again.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::guests::{count, descriptors};
use crate::{Daemon, PATIENCE, Ran, until};

/// About what a sandbox takes to come up in the lab, in ms.
const BOOT: u64 = 4000;
/// Until its machine runs.
const BEGINNING: u64 = 300;

/// What is there when nothing is being done.
#[derive(Debug, PartialEq, Eq)]
struct There {
    machines: usize,
    descriptors: usize,
    /// In the store and beside it, without the names of sandboxes.
    files: Vec<String>,
    /// Of sandboxes, that somebody has.
    locks: usize,
}

impl There {
    /// When what a daemon does at its beginning is done.
    fn settled(daemon: &Daemon) -> Self {
        let mut before = Self::now(daemon);
        loop {
            thread::sleep(Duration::from_millis(500));
            let now = Self::now(daemon);
            if now == before {
                return now;
            }
            before = now;
        }
    }

    fn now(daemon: &Daemon) -> Self {
        let sandboxes = daemon.store.sandboxes();
        let is_held = |sandbox: &&std::path::PathBuf| {
            let lock = File::open(sandbox.join("lock"));
            lock.is_ok_and(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_err())
        };
        let mut files = Vec::new();
        walk(daemon.store.path(), &mut files);
        files.sort();
        Self {
            machines: daemon.store.machines().len(),
            descriptors: descriptors(daemon.process.id()).len(),
            files,
            locks: sandboxes.iter().filter(is_held).count(),
        }
    }
}

fn walk(directory: &Path, files: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.map(Result::unwrap) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), files);
        } else {
            files.push(entry.file_name().into_string().unwrap());
        }
    }
}

/// All that comes until the connection ends, as it does with the daemon.
fn rest(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    // A daemon that is killed with something unread resets the connection.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn succeeded(answer: &str) -> bool {
    answer.starts_with("HTTP/1.0 20") || answer.starts_with("HTTP/1.1 20")
}

impl Daemon {
    /// Whether it is there; it is whole then.
    #[track_caller]
    fn has_whole(&self, name: &str) -> bool {
        let look = || self.ask("GET", &format!("/v1/sandboxes/{name}"), Value::Null);
        // Its machine comes up without the daemon that has asked for it.
        until(|| look().1["data"]["state"] != "creating");
        let (status, sandbox) = look();
        if status == 404 {
            return false;
        }
        assert_eq!((status, &sandbox["data"]["state"]), (200, &json!("running")), "{sandbox}");
        let path = format!("/v1/sandboxes/{name}/exec");
        assert_eq!(self.data("POST", &path, json!({ "command": "echo whole" }))["stdout"], "whole\n");
        true
    }

    /// Waits until all is as it was.
    #[track_caller]
    fn is_as(&self, before: &There) {
        let end = std::time::Instant::now() + PATIENCE;
        while There::now(self) != *before {
            assert!(std::time::Instant::now() < end, "{:#?}\nbefore: {before:#?}", There::now(self));
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn in_the_middle_of_everything() {
    let kills = count("VOIDRUN_DAEMON_KILLS", 3);
    let daemon = Daemon::new();
    for name in ["one", "two", "old-0"] {
        daemon.create(name);
    }
    let line = json!({ "command": "while :; do echo x >> /tmp/count; sleep 0.1; done" });
    daemon.data("POST", "/v1/sandboxes/one/commands/run", line);
    let mut daemon = daemon.kill();
    let before = There::settled(&daemon);
    assert_eq!((before.machines, before.locks), (3, 3));

    let mut random = fastrand::Rng::new();
    let (mut created, mut removed) = (0, 0);
    for round in 0..kills {
        let (old, new) = (format!("old-{round}"), format!("old-{}", round + 1));
        let wanted = json!({ "name": new, "image": "debian", "mem": 256 });
        let sleep = json!({ "command": "sleep 1000", "timeout": 0 });
        let exec = daemon.send("POST", "/v1/sandboxes/one/exec", "", &sleep);
        let endless = json!({ "command": "while :; do echo y; sleep 0.01; done", "timeout": 0 });
        let mut stream = daemon.send("POST", "/v1/sandboxes/two/exec-stream", "", &endless);
        let mut said = String::new();
        while !said.contains("data:y\n") {
            let mut piece = [0; 256];
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0, "{said}");
            said.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
        let stream = thread::spawn(move || rest(stream));
        let session = daemon.store.command(&["exec", "two", "sleep", "1000"]).spawn().unwrap();
        until(|| daemon.running("two") == 2 && daemon.running("one") == 2);
        let creating = daemon.send("POST", "/v1/sandboxes", "", &wanted);
        let at = random.u64(0..if round % 2 == 0 { BOOT } else { BEGINNING });
        thread::sleep(Duration::from_millis(at));
        let removing = daemon.send("DELETE", &format!("/v1/sandboxes/{old}"), "", &Value::Null);
        // Before, in and after the moment that it is answered in.
        thread::sleep(Duration::from_micros(random.u64(0..200_000)));

        daemon = daemon.kill();
        assert_eq!(rest(exec), "");
        assert!(!stream.join().unwrap().contains("event:exit"));
        Ran::from(session.wait_with_output().unwrap()).ends(125, &[]);
        // What was promised is kept, and what was not is whole or gone.
        let (created_told, removed_told) = (succeeded(&rest(creating)), succeeded(&rest(removing)));
        let (has_new, has_old) = (daemon.has_whole(&new), daemon.has_whole(&old));
        println!("{at} ms: new {has_new}, told {created_told}; old {has_old}, told removed {removed_told}");
        assert!(has_new || !created_told);
        assert!(!has_old || !removed_told);
        (created, removed) = (created + usize::from(has_new), removed + usize::from(!has_old));

        assert!(daemon.has_whole("one") && daemon.has_whole("two"));
        let lines = || daemon.cli(&["exec", "one", "wc", "-l", "/tmp/count"]).text();
        let so_far = lines();
        until(|| lines() != so_far);
        // What the clients of the dead daemon ran has ended with it.
        until(|| daemon.running("one") == 1 && daemon.running("two") == 0);
        match (has_old, has_new) {
            (true, true) => drop(daemon.data("DELETE", &format!("/v1/sandboxes/{old}"), Value::Null)),
            (true, false) => {
                daemon.data("PATCH", &format!("/v1/sandboxes/{old}"), json!({ "name": new }));
            }
            (false, true) => {}
            (false, false) => {
                daemon.create(&new);
                // Whoever has made a machine keeps its first stream.
                daemon = daemon.kill();
            }
        }
        daemon.is_as(&before);
    }
    println!("{kills} kills: {created} were created, {removed} removed");
    daemon.cli(&["rm", "-f", "one", "two", &format!("old-{kills}")]).ends(0, &[]);
    daemon.is_clean();
    until(|| daemon.store.machines().is_empty());
}
