//! Machines that a daemon cannot talk to.

use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::{Daemon, PATIENCE, until};

#[test]
fn machines_that_take_no_more_clients() {
    let daemon = Daemon::new();
    let ids = ["kept", "stopped", "gone"].map(|name| daemon.create(name));
    let dozes =
        ["create", "--name", "dozes", "--memory", "256m", "--auto-sleep", "--idle-timeout", "5s", "debian"];
    let dozes = daemon.cli(&dozes).text().trim_end().to_owned();
    let occupied = ids.into_iter().chain([dozes]).map(|id| {
        let socket = daemon.store.path().join("sandboxes").join(id).join("control.sock");
        let client = |_| vmm::control::Client::new(UnixStream::connect(&socket).unwrap(), PATIENCE).unwrap();
        (0..16).map(client).collect::<Vec<_>>()
    });
    let occupied: Vec<_> = occupied.collect();
    let daemon = daemon.kill();
    for name in ["kept", "stopped", "gone"] {
        let sandbox = daemon.data("GET", &format!("/v1/sandboxes/{name}"), Value::Null);
        assert_eq!((&sandbox["state"], &sandbox["lost"]), (&json!("failed"), &json!(true)));
        assert!(sandbox["exitReason"].as_str().unwrap().contains("cannot be talked to"), "{sandbox}");
        let refused =
            daemon.refuses(502, "POST", &format!("/v1/sandboxes/{name}/exec"), json!({ "command": "true" }));
        assert!(refused.contains(name) && refused.contains("`voidrun stop`"), "{refused}");
        daemon.refuses(502, "POST", &format!("/v1/sandboxes/{name}/start"), Value::Null);
    }
    // They can be ended all the same.
    daemon.cli(&["stop", "stopped"]).prints("stopped\n");
    assert_eq!(daemon.state("stopped"), "stopped");
    daemon.cli(&["rm", "gone"]).ends(2, &["gone is lost", "--force"]);
    assert!(daemon.cli(&["ps", "--quiet"]).text().lines().count() == 3);
    daemon.cli(&["rm", "-f", "gone"]).prints("gone\n");
    until(|| daemon.store.sandboxes().len() == 3);
    // And are found as soon as they can be talked to.
    drop(occupied);
    until(|| daemon.state("kept") == "running");
    daemon.cli(&["exec", "kept", "true"]).prints("");
    // One that sleeps by itself does so again.
    until(|| daemon.state("dozes") == "sleeping");
    daemon.cli(&["start", "stopped"]).prints("stopped\n");
    daemon.cli(&["rm", "-f", "kept", "stopped", "dozes"]).ends(0, &[]);
    daemon.is_clean();
}
