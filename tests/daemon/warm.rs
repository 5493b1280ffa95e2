//! Warm starts: what a sandbox is that goes on from where another had booted.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::sleep::{jail, now};
use crate::{Daemon, until};

impl Daemon {
    /// What warm starts go on from.
    fn kept(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.store.path().join("warm"));
        let paths = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
        paths.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
    }

    /// Makes a sandbox, and tells from what it has started.
    fn started(&self, name: &str, more: Value) -> String {
        let mut create = json!({ "image": "debian", "mem": 256, "name": name });
        create.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let start = self.data("POST", "/v1/sandboxes", create)["start"].take();
        eprintln!("{name}: {start}");
        start["from"].as_str().unwrap().to_owned()
    }
}

#[test]
fn the_second_of_a_kind_is_warm_and_itself() {
    let daemon = Daemon::new();
    assert_eq!(daemon.started("first", json!({ "envVars": { "SECRET": "a" } })), "kernel");
    daemon.cli(&["exec", "first", "sh", "-c", "echo first > /root/file; sync"]).prints("");
    until(|| daemon.kept().len() == 1);
    let cold = daemon.data("GET", "/v1/sandboxes/first", Value::Null)["id"].as_str().unwrap().to_owned();
    let of_cold = jail(&daemon, &cold);
    let identity = "hostname; cat /etc/machine-id /sys/class/net/eth0/address; od -An -N16 -tx1 /dev/urandom";
    let first = daemon.cli(&["exec", "first", "sh", "-c", identity]).text();
    daemon.cli(&["rm", "-f", "first"]).ends(0, &[]);
    daemon.is_clean();

    let more = json!({ "hosts": { "db": "192.0.2.9" }, "network": { "mode": "public", "deny": ["udp:*"] } });
    assert_eq!(daemon.started("second", more), "warm");
    let id = daemon.data("GET", "/v1/sandboxes/second", Value::Null)["id"].as_str().unwrap().to_owned();
    assert_eq!(jail(&daemon, &id), of_cold);
    let second = daemon.cli(&["exec", "second", "sh", "-c", identity]).text();
    assert!(second.starts_with(&format!("{id}\n")), "{second}");
    assert!(first.lines().all(|line| !second.contains(line)), "{first}{second}");
    daemon.cli(&["exec", "second", "test", "-e", "/root/file"]).ends(1, &[]);
    daemon
        .cli(&["exec", "second", "sh", "-c", "getent hosts db | cut -d' ' -f1; echo x$SECRET"])
        .prints("192.0.2.9\nx\n");
    assert_eq!(daemon.cli(&["network", "second"]).text(), "public\ndeny udp:*\n");
    let clock: f64 = daemon.cli(&["exec", "second", "date", "+%s.%N"]).text().trim_end().parse().unwrap();
    assert!((now() - clock).abs() < 5.0, "{clock} at {}", now());
    // It is a sandbox as any other.
    daemon.cli(&["exec", "second", "sh", "-c", "echo second > /root/file"]).prints("");
    daemon.cli(&["stop", "second"]).ends(0, &[]);
    daemon.cli(&["start", "second"]).ends(0, &[]);
    daemon.cli(&["exec", "second", "cat", "/root/file"]).prints("second\n");

    // Another kind boots.
    assert_eq!(daemon.started("none", json!({ "network": { "mode": "none" } })), "kernel");
    assert_eq!(daemon.started("cold", json!({ "warm": false })), "kernel");
    until(|| daemon.kept().len() == 2);
    assert_eq!(
        daemon.started("also-none", json!({ "network": { "mode": "none" }, "hosts": { "db": "192.0.2.9" } })),
        "warm"
    );
    daemon.cli(&["exec", "also-none", "grep", "-c", "db", "/etc/hosts"]).prints("1\n");
    let run = |more: &[&str]| {
        daemon.cli(&[&["run", "--memory", "256m", "--verbose"], more, &["debian", "echo", "hello"]].concat())
    };
    let warm = run(&[]);
    assert_eq!((warm.code, &*warm.stdout), (Some(0), &b"hello\n"[..]), "{warm:?}");
    assert!(warm.stderr.contains("has gone on from where one of its kind had booted, in"), "{warm:?}");
    assert!(run(&["--cold"]).stderr.contains("has booted, in"));
    daemon.cli(&["rm", "-f", "second", "none", "cold", "also-none"]).ends(0, &[]);
    daemon.is_clean();

    // What is damaged is booted instead, and taken anew.
    for kept in daemon.kept() {
        let machine = std::fs::File::options().read(true).write(true).open(kept.join("machine")).unwrap();
        machine.write_all_at(b"x", 0).unwrap();
    }
    let run = run(&[]);
    assert_eq!((run.code, &*run.stdout), (Some(0), &b"hello\n"[..]), "{run:?}");
    assert!(
        run.stderr.contains("it could not go on from there") && run.stderr.contains("is no snapshot"),
        "{run:?}"
    );
    daemon.is_clean();
    until(|| daemon.kept().len() == 2);
    let daemon = daemon.kill();
    assert_eq!(daemon.started("again", json!({})), "warm");
    daemon.cli(&["rm", "-f", "again"]).ends(0, &[]);
    daemon.is_clean();
    assert!(daemon.cli(&["system", "prune"]).text().contains("warm start of"));
    assert_eq!(daemon.kept(), Vec::<PathBuf>::new());
}

#[test]
fn it_can_be_switched_off() {
    let daemon = Daemon::configured("[run]\nwarm = false\n");
    for name in ["first", "second"] {
        assert_eq!(daemon.started(name, json!({})), "kernel");
    }
    daemon.cli(&["rm", "-f", "first", "second"]).ends(0, &[]);
    daemon.is_clean();
    // Not even what is being written.
    assert!(!daemon.store.path().join("warm").exists());
}
