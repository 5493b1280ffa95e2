//! What dies, and what is found afterwards.

use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};
use serde_json::{Value, json};

use crate::{Daemon, until};

#[test]
fn a_daemon_that_was_killed() {
    let daemon = Daemon::new();
    daemon.create("runs");
    daemon.create("halts");
    daemon.create("stopped");
    daemon.cli(&["exec", "stopped", "sh", "-c", "echo kept > /root/file"]).prints("");
    daemon.cli(&["stop", "stopped"]).ends(0, &[]);
    daemon.cli(&["pause", "halts"]).ends(0, &[]);
    let line = json!({ "command": "while :; do echo x >> /tmp/count; sleep 0.1; done" });
    let pid = daemon.data("POST", "/v1/sandboxes/runs/commands/run", line)["pid"].as_u64().unwrap();

    let daemon = daemon.kill();
    for (name, state) in [("runs", "running"), ("halts", "paused"), ("stopped", "stopped")] {
        assert_eq!(daemon.state(name), state, "{name}");
    }
    let count = || daemon.cli(&["exec", "runs", "wc", "-l", "/tmp/count"]).text();
    let before = count();
    until(|| count() != before);
    let list = daemon.data("GET", "/v1/sandboxes/runs/commands/list", Value::Null);
    let ours = list.as_array().unwrap().iter().find(|process| process["pid"] == pid).unwrap();
    assert_eq!(ours["running"], true);
    let path = "/v1/sandboxes/runs/commands";
    let (_, killed) = daemon.ask("POST", &format!("{path}/kill"), json!({ "pid": pid }));
    assert_eq!(killed["success"], true, "{killed}");
    assert_eq!(daemon.data("POST", &format!("{path}/wait"), json!({ "pid": pid }))["signal"], 15);

    daemon.cli(&["resume", "halts"]).ends(0, &[]);
    daemon.cli(&["exec", "halts", "true"]).ends(0, &[]);
    daemon.cli(&["start", "stopped"]).ends(0, &[]);
    daemon.cli(&["exec", "stopped", "cat", "/root/file"]).prints("kept\n");
    daemon.cli(&["rm", "-f", "runs", "halts", "stopped"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_machine_that_was_killed() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let session = daemon.store.command(&["exec", "dev", "sleep", "1000"]).spawn().unwrap();
    until(|| daemon.data("GET", "/v1/sandboxes/dev/commands/list", Value::Null)[0]["running"] == true);
    let machine = daemon.store.machine();
    pidfd_send_signal(&machine, Signal::KILL).unwrap();
    crate::guests::dies(&machine);
    let began = Instant::now();
    until(|| daemon.state("dev") == "failed");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let sandbox = daemon.data("GET", "/v1/sandboxes/dev", Value::Null);
    assert!(sandbox["exitReason"].as_str().unwrap().contains("killed"), "{sandbox}");
    assert_eq!(sandbox["status"], "error");
    crate::Ran::from(session.wait_with_output().unwrap()).ends(125, &["killed"]);
    // Its disk is whole.
    daemon.cli(&["start", "dev"]).prints("dev\n");
    daemon.cli(&["exec", "dev", "true"]).prints("");

    // A machine that dies while nobody looks.
    let machine = daemon.store.machine();
    daemon.signal(Signal::STOP);
    pidfd_send_signal(&machine, Signal::KILL).unwrap();
    crate::guests::dies(&machine);
    let daemon = daemon.kill();
    assert_eq!(daemon.state("dev"), "failed");
    daemon.cli(&["rm", "dev"]).prints("dev\n");
    daemon.is_clean();
}

#[test]
fn a_guest_that_powers_off() {
    let daemon = Daemon::new();
    daemon.cli(&["create", "--name", "dev", "code"]).ends(0, &[]);
    // reboot(2), with the guest's own constants; `sleep` is the time that the machine has for it.
    for (what, state, words) in
        [("0x4321fedc", "stopped", "has shut down"), ("0x01234567", "failed", "has reset")]
    {
        let script = format!("import ctypes, time; ctypes.CDLL(None).reboot({what}); time.sleep(60)");
        daemon.cli(&["exec", "dev", "python3", "-c", &script]).ends(125, &[words]);
        assert_eq!(daemon.state("dev"), state);
        daemon.cli(&["start", "dev"]).ends(0, &[]);
    }
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn what_was_cut_off() {
    let daemon = Daemon::new();
    let id = daemon.create("dev");
    let machine = daemon.store.machine();
    let record = daemon.store.path().join("sandboxes").join(&id).join("spec.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    // A creation as it stands between the record and the machine.
    let other = if id.ends_with('0') { '1' } else { '0' };
    let half = daemon.store.path().join("sandboxes").join(format!("{}{other}", &id[..id.len() - 1]));
    std::fs::create_dir(&half).unwrap();
    json["name"] = "half".into();
    for (name, content) in
        [("lock", ""), ("disk.diff", ""), ("spec.json.new", "{"), ("spec.json", &json.to_string())]
    {
        std::fs::write(half.join(name), content).unwrap();
    }
    // A removal as it stands between the answer and the work.
    json["removed"] = true.into();
    std::fs::write(&record, json.to_string()).unwrap();
    let daemon = daemon.kill();
    for name in ["dev", "half"] {
        daemon.refuses(404, "GET", &format!("/v1/sandboxes/{name}"), Value::Null);
    }
    crate::guests::dies(&machine);
    daemon.is_clean();
}
