//! Sandboxes that are there for one command.

use std::io::Read as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::{Daemon, Ran, until};

/// A sandbox whose job this script is; its id.
fn detached(daemon: &Daemon, flags: &[&str], script: &str) -> String {
    let words = [&["run", "--detach", "-m", "256m"], flags, &["debian", "bash", "-c", script]].concat();
    daemon.cli(&words).text().trim_end().to_owned()
}

#[test]
fn its_output_is_kept_and_the_sandbox_stops_with_it() {
    let daemon = Daemon::new();
    // Two pipes have no order between them, but for what is written much later.
    let script = "echo one; echo two >&2; sleep 1; echo $A; sleep 1; exit 3";
    let id = detached(&daemon, &["--name", "job", "-e", "A=three"], script);
    let followed = daemon.cli(&["logs", "--follow", "job"]);
    assert_eq!(
        (followed.code, &*followed.stdout, &*followed.stderr),
        (Some(0), &b"one\nthree\n"[..], "two\n")
    );
    until(|| daemon.state("job") == "stopped");
    let sandbox = daemon.data("GET", "/v1/sandboxes/job", Value::Null);
    assert_eq!(sandbox["job"]["end"]["exitCode"], 3, "{sandbox}");
    assert_eq!(sandbox["exitReason"], "its command has ended");
    let listed = daemon.cli(&["ps", "--all"]).text();
    assert!(listed.contains(&id) && listed.contains("stopped (exit code 3)"), "{listed}");

    // It is kept, and goes on with the next start.
    daemon.cli(&["start", "job"]).ends(0, &[]);
    until(|| daemon.state("job") == "stopped");
    let logs = |flags: &[&str]| {
        let ran = daemon.cli(&[&["logs"], flags, &["job"]].concat());
        (String::from_utf8(ran.stdout).unwrap(), ran.stderr)
    };
    assert_eq!(logs(&[]), ("one\nthree\none\nthree\n".to_owned(), "two\ntwo\n".to_owned()));
    assert_eq!(logs(&["-n", "1"]), ("three\n".to_owned(), String::new()));
    let (timed, _) = logs(&["-t", "--tail", "1"]);
    assert!(timed.starts_with("20") && timed.ends_with("Z three\n"), "{timed}");
    daemon.cli(&["rm", "job"]).ends(0, &[]);
    daemon.cli(&["logs", "job"]).ends(1, &["there is no sandbox job"]);

    daemon.create("plain");
    daemon.cli(&["logs", "plain"]).ends(1, &["plain", "run --detach"]);
    daemon.cli(&["attach", "plain"]).ends(125, &["plain", "process id"]);
}

#[test]
fn what_cannot_be_started_leaves_nothing_and_what_is_to_go_goes() {
    let daemon = Daemon::new();
    let ran = daemon.cli(&["run", "-d", "-m", "256m", "debian", "no-such-program"]);
    ran.ends(127, &["no-such-program"]);
    detached(&daemon, &["--rm"], "sleep 1");
    daemon.is_clean();
    assert_eq!(daemon.data("GET", "/v1/sandboxes", Value::Null), json!([]));
    daemon.refuses(422, "POST", "/v1/sandboxes", json!({ "image": "debian", "autoRemove": true }));
    let job = json!({ "command": "x", "stdin": true });
    daemon.refuses(422, "POST", "/v1/sandboxes", json!({ "image": "debian", "job": job }));
}

#[test]
fn another_daemon_goes_on_with_the_log() {
    let daemon = Daemon::new();
    // It ends when whoever has asked for it has: its sandbox takes with it what runs there yet.
    let script = "for i in {1..100000}; do
        echo $i; sleep 0.05; [ ! -e /end ] || kill -0 $(cat /end) 2>/dev/null || exit 0
    done";
    detached(&daemon, &["--name", "job"], script);
    let printed = |daemon: &Daemon| String::from_utf8(daemon.cli(&["logs", "job"]).stdout).unwrap();
    until(|| printed(&daemon).lines().count() > 3);
    let daemon = daemon.kill();
    until(|| printed(&daemon).lines().count() > 30);
    let daemon = daemon.kill();
    daemon.cli(&["exec", "job", "sh", "-c", "echo $$ > /asked; mv /asked /end"]).ends(0, &[]);
    until(|| daemon.state("job") == "stopped");
    let printed = printed(&daemon);
    let expected: String = (1..=printed.lines().count()).map(|number| format!("{number}\n")).collect();
    assert_eq!(printed, expected);
}

#[test]
fn a_command_is_watched_and_left() {
    let daemon = Daemon::new();
    detached(
        &daemon,
        &["--name", "job"],
        "trap 'echo bye; exit 5' INT; echo up; while :; do sleep 0.1; done",
    );
    let attach = |arguments: &[&str]| {
        let mut command = daemon.store.command(&[&["attach", "job"], arguments].concat());
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let up = |child: &mut std::process::Child| {
        let mut word = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        assert_eq!(&word, b"up\n");
    };
    // Who goes takes nothing with it.
    let mut gone = attach(&[]);
    up(&mut gone);
    gone.kill().unwrap();
    gone.wait().unwrap();
    let pid = daemon.data("GET", "/v1/sandboxes/job", Value::Null)["job"]["pid"].to_string();
    daemon.cli(&["attach", "job", "999999"]).ends(125, &["999999"]);
    let mut child = attach(&[&pid]);
    up(&mut child);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, &*ran.stdout), (Some(5), &b"bye\n"[..]), "{ran:?}");
}
