//! Sandboxes from their making to their removal.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{Daemon, until};

#[test]
fn a_life() {
    let daemon = Daemon::new();
    let id = daemon.create("dev");
    daemon.cli(&["exec", "dev", "sh", "-c", "echo kept > /root/file"]).prints("");
    assert!(daemon.cli(&["ps"]).text().contains("dev"));

    daemon.cli(&["pause", "dev"]).prints("dev\n");
    assert_eq!(daemon.state("dev"), "paused");
    daemon.cli(&["exec", "dev", "true"]).ends(125, &["dev", "paused"]);
    daemon.cli(&["pause", "dev"]).ends(1, &["paused"]);
    daemon.cli(&["resume", "dev"]).prints("dev\n");
    daemon.cli(&["exec", "dev", "cat", "/root/file"]).prints("kept\n");

    daemon.cli(&["stop", &id[..6]]).prints(&format!("{}\n", &id[..6]));
    daemon.cli(&["stop", "dev"]).ends(1, &["stopped"]);
    daemon.cli(&["exec", "dev", "true"]).ends(125, &["dev", "stopped"]);
    assert!(!daemon.cli(&["ps"]).text().contains("dev"));
    assert!(daemon.cli(&["ps", "--all"]).text().contains("stopped"));
    // Another command's sweep leaves it alone.
    daemon.cli(&["images", "ls"]).ends(0, &[]);

    daemon.cli(&["start", "dev"]).prints("dev\n");
    daemon.cli(&["start", "dev"]).ends(1, &["running"]);
    daemon.cli(&["exec", "dev", "cat", "/root/file"]).prints("kept\n");

    // A paused one can be stopped as well.
    daemon.cli(&["pause", "dev"]).prints("dev\n");
    daemon.cli(&["stop", "dev"]).prints("dev\n");
    daemon.cli(&["start", "dev"]).prints("dev\n");
    daemon.cli(&["exec", "dev", "cat", "/root/file"]).prints("kept\n");

    daemon.cli(&["rm", "dev"]).ends(2, &["running", "--force"]);
    let machine = daemon.store.machine();
    daemon.cli(&["rm", "--force", "dev"]).prints("dev\n");
    daemon.cli(&["inspect", "dev"]).ends(1, &["there is no sandbox dev"]);
    crate::guests::dies(&machine);
    daemon.is_clean();

    let (_, metrics) = daemon.raw("GET", "/metrics", "", &Value::Null);
    let sample = |name: &str| {
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{metrics}"));
        line.trim().parse::<u64>().unwrap()
    };
    assert_eq!(sample(r#"voidrun_boots_total{result="ok"}"#), 3);
    assert_eq!(sample("voidrun_boot_duration_seconds_count"), 3);
    assert_eq!(sample(r#"voidrun_machine_exits_total{reason="stopped"}"#), 3);
    assert_eq!(sample(r#"voidrun_execs_total{result="ok"}"#), 4);
    assert_eq!(sample("voidrun_exec_start_duration_seconds_count"), 4);
    assert!(sample(r#"voidrun_guest_traffic_bytes_total{stream="exec",direction="from_guest"}"#) > 15);
    assert_eq!(sample(r#"voidrun_sandboxes{state="running"}"#), 0);
}

#[test]
fn names_labels_and_pages() {
    let daemon = Daemon::new();
    let wanted = json!({ "name": "one", "image": "debian", "mem": 256, "labels": { "team": "a" } });
    let one = daemon.data("POST", "/v1/sandboxes", wanted.clone());
    let two = daemon.data("POST", "/api/sandboxes", json!({ "image": "debian", "mem": 256, "unknown": 1 }));
    let (id, name) = (one["id"].as_str().unwrap(), two["name"].as_str().unwrap());
    assert!(name.contains('-'), "{name}");
    assert!(daemon.refuses(409, "POST", "/v1/sandboxes", wanted).contains(id));
    // What was refused has left nothing.
    assert_eq!(daemon.store.sandboxes().len(), 2);
    let wrong = json!({ "name": "No", "image": "debian" });
    assert!(daemon.refuses(422, "POST", "/v1/sandboxes", wrong).starts_with("name: \"No\""));
    assert!(
        daemon
            .refuses(422, "POST", "/v1/sandboxes", json!({ "image": "absent", "pull": "never" }))
            .contains("absent")
    );

    for key in [id, &id[..8], "one"] {
        assert_eq!(daemon.data("GET", &format!("/v1/sandboxes/{key}"), Value::Null)["id"], id);
    }
    daemon.refuses(404, "GET", "/v1/sandboxes/three", Value::Null);
    let path = "/v1/sandboxes/one";
    assert!(daemon.refuses(409, "PATCH", path, json!({ "name": name })).contains(name));
    let changed = daemon.data("PATCH", path, json!({ "name": "first", "labels": { "team": "b", "x": "y" } }));
    assert_eq!((&changed["name"], &changed["labels"]["team"]), (&json!("first"), &json!("b")));
    daemon.refuses(404, "GET", path, Value::Null);

    let ids = |query: &str| {
        let (status, answer) = daemon.ask("GET", &format!("/v1/sandboxes{query}"), Value::Null);
        assert_eq!(status, 200, "{answer}");
        let ids = answer["data"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect::<Vec<_>>();
        (ids, answer["meta"]["total"].as_u64().unwrap(), answer["meta"]["totalPages"].as_u64().unwrap())
    };
    assert_eq!(ids("?labels=team=b,x=y"), (vec![one["id"].clone()], 1, 1));
    assert_eq!(ids("?labels=team=a"), (vec![], 0, 0));
    assert_eq!(ids("?limit=1&page=2"), (vec![two["id"].clone()], 2, 2));
    daemon.refuses(422, "GET", "/v1/sandboxes?limit=0", Value::Null);

    // What was changed is known to the next daemon.
    let daemon = daemon.kill();
    assert_eq!(daemon.data("GET", "/v1/sandboxes/first", Value::Null)["labels"]["x"], "y");
    daemon.cli(&["rm", "-f", "first", name]).ends(0, &[]);
    daemon.is_clean();
}

/// Whoever finds a sandbox that is coming up waits for it, or removes it.
#[test]
fn removed_while_it_comes_up() {
    let daemon = Daemon::new();
    for _ in 0..3 {
        let mut create =
            daemon.store.command(&["create", "--name", "dev", "-m", "256m", "debian"]).spawn().unwrap();
        until(|| daemon.ask("GET", "/v1/sandboxes/dev", Value::Null).0 == 200);
        daemon.data("DELETE", "/v1/sandboxes/dev", Value::Null);
        create.wait().unwrap();
        daemon.is_clean();
    }
}

#[test]
fn limits() {
    let daemon = Daemon::configured("[limits]\nsandboxes = 2\nmemory = '700MiB'\n");
    daemon.create("one");
    let wanted = json!({ "image": "debian", "mem": 512 });
    let refused = daemon.refuses(429, "POST", "/v1/sandboxes", wanted);
    assert!(refused.contains("512") && refused.contains("limits.memory"), "{refused}");
    daemon.create("two");
    let refused = daemon.refuses(429, "POST", "/v1/sandboxes", json!({ "image": "debian", "mem": 128 }));
    assert!(refused.contains("limits.sandboxes"), "{refused}");
    assert_eq!(daemon.store.sandboxes().len(), 2);
    daemon.cli(&["rm", "-f", "one", "two"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_time_to_live() {
    let daemon = Daemon::new();
    daemon.cli(&["create", "--name", "short", "-m", "256m", "--ttl", "20s", "debian"]).ends(0, &[]);
    // The machine keeps it: a daemon that is killed changes nothing.
    let daemon = daemon.kill();
    until(|| daemon.state("short") == "stopped");
    let sandbox = daemon.data("GET", "/v1/sandboxes/short", Value::Null);
    assert!(sandbox["exitReason"].as_str().unwrap().contains("time to live of 20 s"), "{sandbox}");
    daemon.cli(&["rm", "short"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn an_idle_limit() {
    let daemon = Daemon::new();
    daemon.cli(&["create", "--name", "idle", "-m", "256m", "--idle-timeout", "15s", "debian"]).ends(0, &[]);
    // Also without a daemon, and not while a command runs.
    let daemon = daemon.kill();
    daemon.cli(&["exec", "idle", "sh", "-c", "sleep 18; echo still here"]).prints("still here\n");
    until(|| daemon.state("idle") == "stopped");
    let sandbox = daemon.data("GET", "/v1/sandboxes/idle", Value::Null);
    assert!(sandbox["exitReason"].as_str().unwrap().contains("idle for 15 s"), "{sandbox}");
    assert_eq!(sandbox["idleTimeout"], 15);

    // One that stands still is left alone.
    daemon.cli(&["start", "idle"]).prints("idle\n");
    daemon.cli(&["pause", "idle"]).prints("idle\n");
    std::thread::sleep(std::time::Duration::from_secs(18));
    assert_eq!(daemon.state("idle"), "paused");
    daemon.cli(&["resume", "idle"]).prints("idle\n");
    daemon.cli(&["exec", "idle", "echo", "on"]).prints("on\n");
    until(|| daemon.state("idle") == "stopped");
    daemon.cli(&["rm", "idle"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn the_end_of_the_daemon_is_not_that_of_sandboxes() {
    let mut daemon = Daemon::new();
    daemon.create("dev");
    let machine = daemon.store.machine();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.process.wait().unwrap().code(), Some(0));
    let sockets = std::fs::read_dir(daemon.store.path().join("voidrun")).unwrap();
    assert!(
        sockets
            .map(|entry| entry.unwrap().file_name())
            .all(|name| !name.to_string_lossy().ends_with(".sock"))
    );

    // A command starts the next one by itself.
    daemon.cli(&["exec", "dev", "echo", "still here"]).prints("still here\n");
    let pid = daemon.ask("GET", "/version", Value::Null).1["pid"].as_i64().unwrap();
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    crate::guests::dies(&machine);
    daemon.is_clean();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), Signal::TERM).unwrap();
}

#[test]
fn runs_with_a_name() {
    let daemon = Daemon::new();
    let run = |arguments: &[&str]| daemon.cli(&[&["run", "--name", "dev", "-m", "256m"], arguments].concat());
    run(&["--kernel", "/vmlinux", "debian", "true"]).ends(125, &["--kernel", "--name"]);
    let ran = run(&["-e", "A=1", "debian", "sh", "-c", "echo $A > /root/file; cat /root/file; exit 3"]);
    assert_eq!((ran.code, &*ran.stdout), (Some(3), &b"1\n"[..]));
    run(&["debian", "true"]).ends(125, &["the name dev"]);
    daemon.cli(&["exec", "dev", "sh", "-c", "cat /root/file; echo $A"]).prints("1\n1\n");
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    run(&["--rm", "debian", "no-such-program"]).ends(127, &["no-such-program"]);
    run(&["--rm", "debian", "echo", "gone"]).prints("gone\n");
    daemon.refuses(404, "GET", "/v1/sandboxes/dev", Value::Null);
    daemon.is_clean();
}

#[test]
fn of_two_changes_at_once_both_hold() {
    let daemon = Daemon::new();
    daemon.create("dev");
    // Whoever stops a sandbox has its turn: two changes come while its command does not end yet, and wait for theirs.
    let script = "trap 'echo stopping' TERM; echo waiting; while :; do sleep 0.1; done";
    let mut session = daemon.store.command(&["exec", "dev", "bash", "-c", script]);
    let mut session = session.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(session.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "waiting");
    let path = "/v1/sandboxes/dev";
    let stop = daemon.send("POST", &format!("{path}/stop"), "", &json!({ "timeout": 3 }));
    assert_eq!(lines.next().unwrap().unwrap(), "stopping");
    let changes = [json!({ "deny": ["10.0.0.0/8"] }), json!({ "limits": { "bytesPerSecond": 1000 } })];
    let changes = changes.map(|network| daemon.send("PATCH", path, "", &json!({ "network": network })));
    for request in [stop].into_iter().chain(changes) {
        let (status, body) = crate::answer(request);
        assert_eq!(status, 200, "{body}");
    }
    let network = daemon.data("GET", path, Value::Null)["network"].take();
    let both = json!({ "mode": "public", "deny": ["10.0.0.0/8"], "limits": { "bytesPerSecond": 1000 } });
    assert_eq!(network, both);
    let wrong =
        daemon.refuses(422, "PATCH", path, json!({ "network": { "mode": "public", "allow": ["*"] } }));
    assert!(wrong.starts_with("network: allow[0]: "), "{wrong}");
    session.wait().unwrap();
}
