//! The daemon as far as it goes without a machine: its start, its socket, its lock, and what its API refuses.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::support::{Layout, Ran, Voidrun};
use crate::two_layers;

/// A program with a runtime directory of its own, whose daemons end with it.
pub(crate) struct Site {
    pub(crate) voidrun: Voidrun,
}

impl Site {
    pub(crate) fn new() -> Self {
        let voidrun = Voidrun::new();
        std::fs::create_dir(voidrun.path("runtime")).unwrap();
        Self { voidrun }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_voidrun")), arguments)
    }

    /// Of another program than ours.
    pub(crate) fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = self.voidrun.command_of(program, arguments);
        command.env("XDG_RUNTIME_DIR", self.voidrun.path("runtime"));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.voidrun.path("runtime/voidrun")) else { return Vec::new() };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "sock")).collect()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        let [socket] = &self.sockets()[..] else { panic!("{:?}", self.sockets()) };
        socket.clone()
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        ask(UnixStream::connect(self.socket()).unwrap(), method, path, body)
    }

    /// The daemon's.
    pub(crate) fn release(&self) -> String {
        self.ask("GET", "/version", "").1["version"].as_str().unwrap().to_owned()
    }

    pub(crate) fn daemon(&self) -> Pid {
        daemon(UnixStream::connect(self.socket()).unwrap())
    }

    /// Ends the daemon as a user would, and waits for it.
    pub(crate) fn end(&self, signal: Signal) {
        let process = pidfd_open(self.daemon(), rustix::process::PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&process, signal).unwrap();
        rustix::event::poll(&mut [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)], None)
            .unwrap();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for stream in self.sockets().iter().filter_map(|socket| UnixStream::connect(socket).ok()) {
            let _ = kill_process(daemon(stream), Signal::KILL);
        }
    }
}

pub(crate) fn ask(mut stream: UnixStream, method: &str, path: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    // In one piece: an answer that needs no body may come, and the connection end, before it is sent.
    let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

pub(crate) fn daemon(stream: UnixStream) -> Pid {
    let (_, version) = ask(stream, "GET", "/version", "");
    Pid::from_raw(i32::try_from(version["pid"].as_i64().unwrap()).unwrap()).unwrap()
}

#[test]
fn several_commands_at_once_start_one_daemon() {
    let site = Site::new();
    let commands: Vec<_> = (0..6).map(|_| site.command(&["ps", "--json"]).spawn().unwrap()).collect();
    for command in commands {
        let ran = Ran::from(command.wait_with_output().unwrap());
        assert_eq!(ran.json(), json!([]));
    }
    let log = std::fs::read_to_string(site.voidrun.path(".local/state/voidrun/daemon.log")).unwrap();
    assert_eq!(log.matches("serves").count(), 1, "{log}");
    let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(site.socket()), mode(site.voidrun.path("runtime/voidrun"))), (0o600, 0o700));

    let pid = site.daemon();
    site.run(&["ps"]).ok();
    assert_eq!(site.daemon(), pid);
    // It goes and takes its socket along; the next command starts another one.
    site.end(Signal::TERM);
    assert!(site.sockets().is_empty());
    site.run(&["ps"]).ok();
    assert_ne!(site.daemon(), pid);
    // One that was killed leaves a socket that nobody listens at.
    site.end(Signal::KILL);
    assert_eq!(site.sockets().len(), 1);
    site.run(&["daemon", "--detach"]).ok();
    let pid = site.daemon();
    site.run(&["daemon", "--detach"]).ok();
    assert_eq!(site.daemon(), pid);
}

/// Whoever reads what a command has written, by whatever descriptor, reads to its end.
#[test]
fn a_daemon_inherits_nothing() {
    let site = Site::new();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" ps 9>&1 >/dev/null", env!("CARGO_BIN_EXE_voidrun")]);
    let ours = site.command(&[]);
    command.env_clear().envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(pipe.read_to_end(&mut Vec::new()).unwrap()));
    assert!(child.wait().unwrap().success());
    assert_eq!(ended.recv_timeout(Duration::from_secs(30)), Ok(0));
    // It was the daemon that could have held it open.
    site.daemon();
}

#[test]
fn a_second_daemon_refuses() {
    let site = Site::new();
    site.run(&["ps"]).ok();
    let store = site.voidrun.store().display().to_string();
    site.run(&["daemon"]).fails(1, &["another daemon has the store", &store]);
    // The first one has not been disturbed.
    site.run(&["ps"]).ok();
    // Another store is another daemon's.
    let other = site.voidrun.path("other").display().to_string();
    site.run(&["--home", &other, "ps"]).ok();
    let daemons: std::collections::BTreeSet<i32> = site
        .sockets()
        .iter()
        .map(|socket| daemon(UnixStream::connect(socket).unwrap()).as_raw_nonzero().get())
        .collect();
    assert_eq!(daemons.len(), 2);
}

#[test]
fn directories_that_are_not_ones_own() {
    let site = Site::new();
    let place = site.voidrun.path("runtime/voidrun");
    std::fs::create_dir(&place).unwrap();
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).unwrap();
    site.run(&["ps"]).fails(1, &["not this user's alone", "0700", "runtime/voidrun"]);
    std::fs::remove_dir(&place).unwrap();
    std::fs::create_dir(site.voidrun.path("elsewhere")).unwrap();
    symlink(site.voidrun.path("elsewhere"), &place).unwrap();
    site.run(&["ps"]).fails(1, &["not this user's alone"]);
    std::fs::remove_file(&place).unwrap();
    std::fs::write(&place, b"").unwrap();
    site.run(&["daemon"]).fails(1, &["not this user's alone"]);
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let site = Site::new();
    std::fs::create_dir_all(site.voidrun.store()).unwrap();
    std::fs::write(site.voidrun.store().join("store.json"), br#"{"format": 99}"#).unwrap();
    site.run(&["ps"]).fails(1, &["daemon could not be started", "99", "daemon.log"]);
}

#[test]
fn what_listens_and_does_not_answer() {
    let site = Site::new();
    site.run(&["ps"]).ok();
    let socket = site.socket();
    site.end(Signal::TERM);
    // Each connection ends at once: there is no daemon, and none takes the place of whoever that is.
    let listener = UnixListener::bind(&socket).unwrap();
    let accepting = listener.try_clone().unwrap();
    std::thread::spawn(move || accepting.incoming().for_each(drop));
    let words = ["cannot listen at", "another process listens there", &socket.display().to_string()];
    site.run(&["ps"]).fails(1, &words);
    site.run(&["daemon"]).fails(1, &words);
    assert!(UnixStream::connect(&socket).is_ok());
    std::fs::remove_file(&socket).unwrap();
    site.run(&["ps"]).ok();
}

/// In cron, or with another session's environment.
#[test]
fn a_daemon_is_found_by_its_store() {
    let site = Site::new();
    site.run(&["ps"]).ok();
    let pid = site.daemon();
    for (name, value) in
        [("XDG_RUNTIME_DIR", ""), ("XDG_RUNTIME_DIR", "/nonexistent"), ("HOME", "/nonexistent")]
    {
        Ran::from(site.command(&["ps"]).env(name, value).output().unwrap()).ok();
    }
    let store = site.voidrun.store().display().to_string();
    site.run(&["--home", &format!("{store}/../store/"), "ps"]).ok();
    assert_eq!(site.daemon(), pid);
    site.run(&["daemon"]).fails(1, &["another daemon has the store"]);

    // Two data directories are two stores, of which neither is the default one's.
    for (data, daemons) in [("a", 2), ("b", 3), ("a", 3), (".local/share", 4)] {
        let mut command = site.command(&["ps"]);
        command.env_remove("VOIDRUN_HOME").env("XDG_DATA_HOME", site.voidrun.path(data));
        Ran::from(command.output().unwrap()).ok();
        assert_eq!(site.sockets().len(), daemons, "{data}: {:?}", site.sockets());
        let default = site.sockets().iter().any(|socket| socket.ends_with("voidrun.sock"));
        assert_eq!(default, data == ".local/share");
    }
}

/// The session's directory goes at the last logout, with the socket in it.
#[test]
fn a_socket_that_was_taken_away() {
    let site = Site::new();
    site.run(&["ps"]).ok();
    let (pid, socket) = (site.daemon(), site.socket());
    std::fs::remove_file(&socket).unwrap();
    site.run(&["ps"]).ok();
    assert_eq!(site.daemon(), pid);
    std::fs::remove_dir_all(site.voidrun.path("runtime/voidrun")).unwrap();
    site.run(&["ps"]).ok();
    assert_eq!(site.daemon(), pid);

    // Somebody else's in its place is left alone while anybody listens there.
    std::fs::remove_file(&socket).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let log = || std::fs::read_to_string(site.voidrun.path(".local/state/voidrun/daemon.log")).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while !log().contains("another process listens there") {
        assert!(Instant::now() < end, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(listener);
    // It is its own again.
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < end, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(site.daemon(), pid);
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_the_api_refuses() {
    let site = Site::new();
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    site.run(&["images", "pull", &source]).ok();
    site.run(&["ps"]).ok();
    for (method, path, body, status, words) in [
        ("GET", "/v1/nothing", "", 404, "/v1/nothing"),
        ("PUT", "/v1/sandboxes", "", 405, "PUT"),
        ("GET", "/v1/sandboxes/absent", "", 404, "absent"),
        ("POST", "/v1/sandboxes/absent/exec", r#"{"command": "x"}"#, 404, "absent"),
        ("POST", "/v1/sandboxes", "{", 400, "JSON"),
        ("POST", "/v1/sandboxes", r#"{"nmae": "x"}"#, 422, "did you mean name?"),
        ("POST", "/v1/sandboxes", r#"{"image": "absent:1", "pull": "never"}"#, 422, "absent:1"),
        ("POST", "/v1/sandboxes", r#"{"image": "tool", "cpu": 99}"#, 422, "cpu: 99"),
        ("POST", "/v1/sandboxes", r#"{"image": "tool", "diskMB": 7}"#, 422, "diskMB: 7"),
        ("POST", "/v1/sandboxes", r#"{"image": "tool", "mounts": [{}]}"#, 501, "mounts"),
        (
            "POST",
            "/v1/sandboxes",
            r#"{"image": "tool", "ports": [{"port": 80, "hostPort": 80}, {"port": 0}]}"#,
            422,
            "ports",
        ),
        (
            "POST",
            "/v1/sandboxes",
            r#"{"image": "tool", "network": {"allow": ["a b"]}}"#,
            422,
            "network.allow[0]",
        ),
        ("POST", "/v1/sandboxes", r#"{"image": "tool", "network": {"mode": "publik"}}"#, 422, "network.mode"),
        ("POST", "/api/sandboxes", r#"{"image": "tool", "any": 1, "region": null}"#, 503, "kernel"),
        ("GET", "/v1/sandboxes?page=x", "", 400, "invalid digit"),
        ("GET", "/v1/sandboxes?labels=x", "", 422, "k=v"),
    ] {
        let (found, answer) = site.ask(method, path, body);
        assert_eq!(found, status, "{method} {path} {body}: {answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{method} {path} {body}: {detail}");
        assert_eq!((&answer["code"], &answer["details"]), (&json!(status), &json!(detail)));
    }
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    stream.write_all(b"POST /v1/sandboxes HTTP/1.0\r\nContent-Length: 5000000\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 413 "), "{answer}");
    assert_eq!(site.ask("GET", "/healthz", "").1["status"], "ok");
    assert_eq!(site.voidrun.files("sandboxes"), Vec::<String>::new());
}

/// A client that sends before it reads finds the answer and not a broken connection.
#[test]
fn a_long_body_of_a_request_that_is_refused() {
    let site = Site::new();
    site.run(&["ps"]).ok();
    for (path, status) in [("/v1/nothing", 404), ("/v1/sandboxes/absent/exec", 404), ("/v1/sandboxes", 413)] {
        let (found, answer) = site.ask("POST", path, &" ".repeat(16 << 20));
        assert_eq!(found, status, "{answer}");
    }
    // One that never ends is not read for ever.
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    stream.write_all(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n").unwrap();
    let piece = vec![b' '; 1 << 20];
    assert!((0..999).any(|_| stream.write_all(&piece).is_err()));
}

/// Whatever the reason here, no KVM or none that can be used, or one that works and a kernel that is none.
#[test]
fn a_sandbox_that_cannot_start_leaves_nothing() {
    let site = Site::new();
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    site.run(&["images", "pull", &source]).ok();
    let kernel = site.voidrun.file("kernel", b"this is no kernel");
    site.voidrun.configure(&format!("kernel = '{kernel}'\n"));
    site.run(&["create", "--name", "x", "tool"]).fails(1, &["cannot start the sandbox x from tool"]);
    assert_eq!(site.run(&["ps", "--all", "--json"]).json(), json!([]));
    assert_eq!(site.voidrun.files("sandboxes"), Vec::<String>::new());
    site.run(&["exec", "x", "true"]).fails(125, &["there is no sandbox x"]);
    site.run(&["rm", "x"]).fails(1, &["there is no sandbox x"]);
}
