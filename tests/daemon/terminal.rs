//! Terminals: over a WebSocket, and sessions that outlive it, and the daemon.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket, client};

use crate::{Daemon, PATIENCE, until};

/// A connection to a terminal, and what it has shown.
struct Terminal {
    socket: WebSocket<UnixStream>,
    shown: String,
}

impl Terminal {
    #[track_caller]
    fn connect(daemon: &Daemon, path: &str) -> Self {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = client(format!("ws://localhost{path}"), stream).unwrap();
        Self { socket, shown: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.socket.send(Message::binary(text.as_bytes().to_vec())).unwrap();
    }

    /// Reads until it has shown this since it was asked last.
    #[track_caller]
    fn shows(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            match self.socket.read().unwrap_or_else(|e| panic!("{e}: {text:?} is not in {:?}", self.shown)) {
                // Each is text by itself.
                Message::Binary(bytes) => self.shown += std::str::from_utf8(&bytes).unwrap(),
                other => panic!("{other:?}: {text:?} is not in {:?}", self.shown),
            }
        }
    }

    /// Reads to the end; the code of the close frame.
    #[track_caller]
    fn ends(&mut self) -> (u16, String) {
        loop {
            match self.socket.read().unwrap() {
                Message::Binary(_) => {}
                Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn sessions(daemon: &Daemon) -> Vec<Value> {
    let mut data = daemon.data("GET", "/v1/sandboxes/t/pty/sessions", Value::Null);
    serde_json::from_value(data["sessions"].take()).unwrap()
}

/// The path of a new one.
fn session(daemon: &Daemon, size: Value) -> String {
    let data = daemon.data("POST", "/v1/sandboxes/t/pty/sessions", size);
    assert!(data["createdAt"].as_str().unwrap().ends_with('Z'), "{data}");
    format!("/v1/sandboxes/t/pty/sessions/{}", data["sessionId"].as_str().unwrap())
}

#[test]
fn one_that_ends_with_its_connection() {
    let daemon = Daemon::new();
    daemon.create("t");
    let mut terminal = Terminal::connect(&daemon, "/v1/sandboxes/t/pty?cols=100&rows=30");
    terminal.shows("# ");
    terminal.types("stty size; echo $((6 * 7)) grün 👍; tty\n");
    terminal.shows("30 100\r\n42 grün 👍\r\n/dev/pts/");
    // As the published client types: text.
    terminal.socket.send(Message::text("exec sleep 4711\n")).unwrap();
    until(|| is_running(&daemon, "sleep 4711"));
    // Ctrl-C is a key like any other, and the end of the command closes.
    terminal.types("\x03");
    assert_eq!(terminal.ends(), (1000, String::new()));

    let mut terminal = Terminal::connect(&daemon, "/v1/sandboxes/t/pty");
    terminal.types("sleep 4712\n");
    until(|| is_running(&daemon, "sleep 4712"));
    drop(terminal);
    until(|| !is_running(&daemon, "sleep 4712"));

    // The output of one that is read slowly waits; none of it is lost.
    let mut terminal = Terminal::connect(&daemon, "/v1/sandboxes/t/pty");
    terminal.shows("# ");
    terminal.types("head -c 1500000 /dev/zero | tr '\\0' x; echo; echo over\n");
    std::thread::sleep(Duration::from_secs(1));
    let shown = terminal.shows("x\r\nover\r\n");
    assert_eq!(shown.matches('x').count(), 1_500_001, "with that of the line's echo");
    assert_eq!(sessions(&daemon), Vec::<Value>::new());

    // What is no WebSocket, and what cannot be.
    let detail = daemon.refuses(400, "GET", "/v1/sandboxes/t/pty", Value::Null);
    assert!(detail.contains("WebSocket"), "{detail}");
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    let refused = client("ws://localhost/v1/sandboxes/t/pty?cols=501", stream).unwrap_err().to_string();
    assert!(refused.contains("422"), "{refused}");
    // The end of the machine closes as well.
    let data = daemon.data("POST", "/v1/sandboxes/t/stop", json!({ "timeout": 0 }));
    assert_eq!(data["state"], "stopped");
    let (code, reason) = terminal.ends();
    assert!(code == 1000 || (code == 1011 && reason.contains("ended")), "{code} {reason}");
}

#[test]
fn a_client_that_goes_is_missed_though_its_text_is_not_taken() {
    let daemon = Daemon::new();
    daemon.create("t");
    let mut terminal = Terminal::connect(&daemon, "/v1/sandboxes/t/pty");
    // An echo that is not read would tell as well.
    terminal.types("stty -echo; sleep 4713\n");
    until(|| is_running(&daemon, "sleep 4713"));
    terminal.socket.get_ref().set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let lines = "a line\n".repeat(1000);
    while terminal.socket.send(Message::text(&*lines)).is_ok() {}
    assert!(is_running(&daemon, "sleep 4713"));
    drop(terminal);
    until(|| !is_running(&daemon, "sleep 4713"));
}

fn is_running(daemon: &Daemon, line: &str) -> bool {
    // Its first character in brackets, so that the pattern does not match itself.
    let pattern = format!("grep -lz '^{}' /proc/[0-9]*/cmdline", line.split(' ').next().unwrap());
    let ran = daemon.data("POST", "/v1/sandboxes/t/exec", json!({ "command": pattern }));
    !ran["stdout"].as_str().unwrap().is_empty()
}

#[test]
fn sessions_outlive_connections_and_the_daemon() {
    let daemon = Daemon::new();
    daemon.create("t");
    let path = session(&daemon, json!({ "cols": 90, "rows": 20 }));
    let mut terminal = Terminal::connect(&daemon, &path);
    terminal.types("stty size; NAME=kept\n");
    terminal.shows("20 90\r\n");
    let [listed] = &sessions(&daemon)[..] else { panic!() };
    assert!(path.ends_with(listed["id"].as_str().unwrap()), "{listed}");
    assert_eq!((&listed["clients"], &listed["alive"]), (&json!(1), &json!(true)));
    drop(terminal);
    until(|| sessions(&daemon)[0]["clients"] == 0);

    daemon.data("POST", &format!("{path}/resize"), json!({ "cols": 132, "rows": 43 }));
    daemon.data("POST", &format!("{path}/execute"), json!({ "command": "echo $NAME; stty size" }));
    until(|| {
        let data = daemon.data("GET", &format!("{path}/buffer"), Value::Null);
        data["output"].as_str().unwrap().contains("kept\r\n43 132\r\n")
    });
    // Terminals are no background commands.
    let (_, commands) = daemon.ask("GET", "/v1/sandboxes/t/commands/list", Value::Null);
    assert_eq!(commands["processes"], json!([]));

    let daemon = daemon.kill();
    let mut again = Terminal::connect(&daemon, &path);
    again.shows("20 90\r\n");
    again.shows("43 132\r\n");
    again.types("echo \"<$NAME>\"\n");
    again.shows("<kept>\r\n");

    daemon.data("DELETE", &path, Value::Null);
    assert_eq!(again.ends().0, 1000);
    assert_eq!(sessions(&daemon), Vec::<Value>::new());
    for (method, end) in [("DELETE", ""), ("GET", "/buffer")] {
        let detail = daemon.refuses(404, method, &format!("{path}{end}"), Value::Null);
        assert!(detail.contains("no terminal") && detail.contains("the sandbox t"), "{detail}");
    }
}

#[test]
fn sessions_are_bounded() {
    let daemon = Daemon::new();
    daemon.create("t");
    let create = |size| daemon.ask("POST", "/v1/sandboxes/t/pty/sessions", size);
    for (size, field) in [(json!({ "cols": 501 }), "cols"), (json!({ "rows": 0 }), "rows")] {
        let (status, problem) = create(size);
        assert_eq!(status, 422);
        assert!(problem["detail"].as_str().unwrap().starts_with(field), "{problem}");
    }
    let paths: Vec<String> = (0..32).map(|_| session(&daemon, json!({}))).collect();
    let (status, problem) = create(json!({}));
    assert_eq!(status, 429, "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with("the sandbox t has 32 terminals"), "{problem}");
    daemon.data("DELETE", &paths[0], Value::Null);
    session(&daemon, json!({}));
    let long = json!({ "command": "x".repeat(70_000) });
    let detail = daemon.refuses(422, "POST", &format!("{}/execute", paths[1]), long);
    assert!(detail.starts_with("command: is 70000 bytes"), "{detail}");
}

#[test]
fn commands_that_are_typed_have_an_output_and_an_end() {
    let daemon = Daemon::new();
    daemon.create("t");
    let ask = |body: Value| {
        let (status, answer) = daemon.ask("POST", "/api/sandboxes/t/session-exec", body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    for shell in [json!("/bin/bash"), json!("/bin/sh"), Value::Null] {
        let created = ask(json!({ "action": "create", "shell": shell, "sessionId": null }));
        let id = created["sessionId"].as_str().unwrap().to_owned();
        let exec = |command: &str| ask(json!({ "action": "exec", "sessionId": id, "command": command }));
        let first = exec("cd /tmp; X='a\tb'\nfalse; pwd");
        assert_eq!((&first["output"], &first["exitCode"]), (&json!("/tmp\r\n"), &json!(0)), "{shell}");
        let second = exec("echo \"$X ü\"; pwd; (exit 7)");
        assert_eq!(second["output"], "a\tb ü\r\n/tmp\r\n", "{shell}");
        assert_eq!((&second["exitCode"], &second["success"]), (&json!(7), &json!(false)));

        let path = "/api/sandboxes/t/session-exec-stream";
        let body = json!({ "sessionId": id, "command": "read -r line; echo \"got $line\"" });
        std::thread::scope(|scope| {
            let streamed = scope.spawn(|| daemon.raw("POST", path, "Accept: text/event-stream\r\n", &body));
            let waits = || {
                let shown =
                    daemon.data("GET", &format!("/v1/sandboxes/t/pty/sessions/{id}/buffer"), Value::Null);
                shown["output"].as_str().unwrap().contains("read ")
            };
            until(waits);
            ask(json!({ "action": "input", "sessionId": id, "input": "it\n" }));
            let (_, events) = streamed.join().unwrap();
            assert!(events.contains("data:got it\n"), "{events}");
            assert!(events.ends_with("event:exit\ndata:{\"exitCode\":0,\"durationMs\":0}\n\n"), "{events}");
        });
        let last = exec("exit 5");
        assert_eq!(last["exitCode"], 5, "{shell}: {last}");
    }
    let detail = daemon.refuses(422, "POST", "/v1/sandboxes/t/session-exec", json!({ "action": "exec" }));
    assert!(detail.starts_with("sessionId: is missing"), "{detail}");
    let nowhere = json!({ "action": "close", "sessionId": "1-2" });
    daemon.refuses(404, "POST", "/v1/sandboxes/t/session-exec", nowhere);
}
