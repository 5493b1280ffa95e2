//! Commands, by all ways.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{ChildStdin, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{Daemon, Ran, until};

const EXEC: &str = "/v1/sandboxes/dev/exec";

#[test]
fn in_one_answer() {
    let daemon = Daemon::new();
    daemon
        .cli(&["create", "--name", "dev", "-m", "256m", "-e", "A=sandbox", "-e", "B=sandbox", "debian"])
        .ends(0, &[]);
    let exec = |body: Value| daemon.data("POST", EXEC, body);
    let ran = exec(json!({ "command": "echo {1..3}; echo $A $B >&2; exit 3", "env": { "B": "exec" } }));
    assert_eq!(
        (&ran["stdout"], &ran["stderr"], &ran["exitCode"]),
        (&json!("1 2 3\n"), &json!("sandbox exec\n"), &json!(3))
    );
    // No shell.
    let ran = exec(json!({ "command": "echo", "args": ["$A", "a b"], "cwd": null }));
    assert_eq!(ran["stdout"], "$A a b\n");
    assert_eq!(exec(json!({ "command": "pwd", "cwd": "/tmp" }))["stdout"], "/tmp\n");
    let ran = exec(json!({ "command": "echo before; sleep 100", "timeout": 1 }));
    assert_eq!(
        (&ran["stdout"], &ran["exitCode"], &ran["timedOut"]),
        (&json!("before\n"), &json!(124), &json!(true))
    );
    let ran = exec(json!({ "command": "head -c 9000000 /dev/zero | tr '\\0' x" }));
    assert_eq!((ran["stdout"].as_str().unwrap().len(), &ran["truncated"]), (8 << 20, &json!(true)));
    assert_eq!(exec(json!({ "command": "kill -9 $$" }))["exitCode"], 137);

    for (body, words) in [
        (json!({ "command": "nope", "args": [] }), "nope"),
        (json!({ "command": "true", "cwd": "/no/such/directory" }), "/no/such/directory"),
        (json!({ "command": "true", "user": "nobody-of-that-name" }), "nobody-of-that-name"),
        (json!({ "command": "true", "timeout": -1 }), "timeout: "),
        (json!({ "command": "a\0b" }), "NUL"),
        (json!({ "comand": "true" }), "did you mean command?"),
    ] {
        let refused = daemon.refuses(422, "POST", EXEC, body);
        assert!(refused.contains(words), "{refused}");
    }
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn as_it_comes() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let path = "/v1/sandboxes/dev/exec-stream";
    // In one write: the shell's own printf writes each line.
    let line = "/usr/bin/printf 'a\\nevent:exit\\n'; sleep 1; /usr/bin/printf '\\377'; exit 4";
    let body = json!({ "command": line });
    let (status, events) = daemon.raw("POST", path, "Accept: text/event-stream\r\n", &body);
    assert_eq!(status, 200);
    let (output, exit) = events.split_once("event:exit\ndata:{").unwrap();
    assert_eq!(output, "event:stdout\ndata:a\ndata:event:exit\ndata:\n\nevent:stdout\ndata:\u{fffd}\n\n");
    assert!(exit.contains("\"exitCode\":4") && exit.ends_with("}\n\n"), "{exit}");
    let (_, lines) = daemon.raw("POST", path, "Accept: application/x-ndjson\r\n", &body);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[1], json!({ "stream": "stdout", "data": "/w==" }));
    assert_eq!((&lines[2]["stream"], &lines[2]["exitCode"]), (&json!("exit"), &json!(4)));

    // Clients that go away end their commands, by each way.
    let runs = || {
        let list = daemon.data("GET", "/v1/sandboxes/dev/commands/list", Value::Null);
        list.as_array().unwrap().iter().filter(|process| process["running"] == true).count()
    };
    let sleep = json!({ "command": "sleep 1000", "timeout": 0 });
    for path in [path, EXEC] {
        let stream = daemon.send("POST", path, "", &sleep);
        until(|| runs() == 1);
        drop(stream);
        until(|| runs() == 0);
    }
    let mut session = daemon.store.command(&["exec", "dev", "sleep", "1000"]).spawn().unwrap();
    until(|| runs() == 1);
    session.kill().unwrap();
    session.wait().unwrap();
    until(|| runs() == 0);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn by_the_command_line() {
    let daemon = Daemon::new();
    daemon.create("dev");
    daemon.cli(&["exec", "dev", "sh", "-c", "echo out; echo err >&2; exit 7"]).ends(7, &["err"]);
    daemon.cli(&["exec", "dev", "no-such-program"]).ends(127, &["no-such-program"]);
    daemon.cli(&["exec", "dev", "/etc/passwd"]).ends(126, &["/etc/passwd"]);
    daemon.cli(&["exec", "--timeout", "1", "dev", "sleep", "100"]).ends(124, &["1s", "--timeout"]);
    daemon.cli(&["exec", "nobody", "true"]).ends(125, &["there is no sandbox nobody"]);
    daemon.cli(&["exec", "-t", "dev", "tty"]).prints("/dev/pts/0\r\n");

    let mut child = daemon.store.command(&["exec", "-i", "dev", "wc", "-c"]);
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&vec![b'x'; 3 << 20]).unwrap();
    Ran::from(child.wait_with_output().unwrap()).prints("3145728\n");

    let script = "trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.1; done";
    let mut child = daemon.store.command(&["exec", "dev", "bash", "-c", script]).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    output.read_to_string(&mut line).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*line), (Some(9), "up\ninterrupted\n"));
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_client_that_goes_is_missed_though_its_command_takes_no_input() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let mut session = daemon.store.command(&["exec", "-i", "dev", "sleep", "1000"]);
    let mut session = session.stdin(Stdio::piped()).spawn().unwrap();
    until(|| daemon.running("dev") == 1);
    fill(session.stdin.as_ref().unwrap());
    assert_eq!(daemon.running("dev"), 1);
    session.kill().unwrap();
    session.wait().unwrap();
    until(|| daemon.running("dev") == 0);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

/// Writes until nothing more is taken, all the way to a command that reads nothing.
fn fill(input: &ChildStdin) {
    let long = Timespec { tv_sec: 3, tv_nsec: 0 };
    while poll(&mut [PollFd::new(input, PollFlags::OUT)], Some(&long)).unwrap() > 0 {
        // A pipe that is ready has room for so much (pipe(7)).
        rustix::io::write(input, &[b'x'; 4096]).unwrap();
    }
}

#[test]
fn in_the_background() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let path = |verb: &str| format!("/v1/sandboxes/dev/commands/{verb}");
    let line = "echo first; sleep 1; echo second; exit 5";
    let (status, run) = daemon.ask("POST", &path("run"), json!({ "command": line }));
    assert_eq!((status, &run["success"], &run["pid"]), (200, &json!(true), &run["data"]["pid"]));
    let pid = run["pid"].clone();
    let (_, events) = daemon.raw("POST", &path("attach"), "", &json!({ "pid": pid }));
    assert!(events.contains("data:first\n") && events.contains("data:second\n"), "{events}");
    assert!(events.contains("\"exitCode\":5"), "{events}");
    // Asked again, it answers again.
    for _ in 0..2 {
        let (_, ended) = daemon.ask("POST", &path("wait"), json!({ "pid": pid }));
        assert_eq!((&ended["success"], &ended["exitCode"]), (&json!(true), &json!(5)));
    }
    let (_, list) = daemon.ask("GET", &path("list"), Value::Null);
    assert_eq!((&list["processes"][0]["command"], &list["data"][0]["exitCode"]), (&json!(line), &json!(5)));
    let (status, killed) = daemon.ask("POST", &path("kill"), json!({ "pid": pid }));
    assert_eq!((status, &killed["success"]), (200, &json!(false)));
    daemon.refuses(404, "POST", &path("kill"), json!({ "pid": 99999 }));
    daemon.refuses(404, "POST", &path("wait"), json!({ "pid": 99999 }));
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}
