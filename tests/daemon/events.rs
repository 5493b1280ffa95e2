//! What is told of a sandbox's life.

use std::io::{BufRead as _, BufReader, Read as _};

use rustix::process::{Signal, pidfd_send_signal};
use serde_json::{Value, json};

use crate::Daemon;

#[test]
fn a_life_as_it_is_told() {
    let mut daemon = Daemon::new();
    let mut events = BufReader::new(daemon.send("GET", "/v1/events?sandbox=dev", "", &Value::Null));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(events.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let id = daemon.create("dev");
    // Another one's are not asked for.
    daemon.create("other");
    for (verb, kind) in [("pause", "paused"), ("resume", "resumed")] {
        daemon.cli(&[verb, "dev"]).prints("dev\n");
        assert_eq!(daemon.state("dev"), if kind == "paused" { "paused" } else { "running" });
    }
    daemon.cli(&["rm", "-f", "other"]).ends(0, &[]);
    daemon.cli(&["stop", "dev"]).prints("dev\n");
    daemon.cli(&["start", "dev"]).prints("dev\n");
    daemon.data("PATCH", "/v1/sandboxes/dev", json!({ "labels": { "team": "a" } }));
    crate::until(|| daemon.store.sandboxes().len() == 1);
    let machine = daemon.store.machine();
    pidfd_send_signal(&machine, Signal::KILL).unwrap();
    crate::until(|| daemon.state("dev") == "failed");
    daemon.cli(&["start", "dev"]).prints("dev\n");
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    daemon.is_clean();
    daemon.signal(Signal::TERM);
    daemon.process.wait().unwrap();

    let mut told = String::new();
    events.read_to_string(&mut told).unwrap();
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<(&str, &str)> = told
        .iter()
        .map(|event| (event["kind"].as_str().unwrap(), event["reason"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(
        kinds,
        [
            ("created", ""),
            ("started", ""),
            ("paused", ""),
            ("resumed", ""),
            ("stopped", "it was stopped"),
            ("started", ""),
            ("changed", ""),
            ("failed", "the machine's process was killed or has crashed"),
            ("started", ""),
            ("stopped", "it was stopped"),
            ("removed", ""),
        ]
    );
    for (event, labels) in told.iter().zip([None; 6].into_iter().chain([Some("a"); 5])) {
        assert_eq!(
            (&event["id"], &event["name"], &event["image"]),
            (&json!(id), &json!("dev"), &json!("debian"))
        );
        assert_eq!(event["labels"]["team"].as_str(), labels, "{event}");
    }
}
