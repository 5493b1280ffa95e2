//! The host's side of a stream, as plain as can be.

use agent::Agent;
use agent::cgroup::Cgroups;
use protocol::{
    Command, Config, Control, Decoder, Error, Exec, Exit, Frame, FrameType, Request, Sender, Started, encode,
};
use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Longer than anything takes here; a hang is a failure, not a wait.
const DEADLINE: Duration = Duration::from_secs(30);

/// The agent under test.
pub(crate) fn agent() -> &'static Arc<Agent> {
    static AGENT: OnceLock<Arc<Agent>> = OnceLock::new();
    AGENT.get_or_init(|| Agent::new(Cgroups::new(cgroup()), Config::default()).unwrap())
}

/// A stream to the agent.
pub(crate) fn connect() -> UnixStream {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    let address = ADDRESS.get_or_init(|| {
        let name = format!("voidrun-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        agent::serve::start(agent(), UnixListener::bind_addr(&address).unwrap().into()).unwrap();
        address
    });
    UnixStream::connect_addr(address).unwrap()
}

/// A new cgroup for this process's agent, in the unified hierarchy wherever it is mounted.
fn cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a mounted cgroup2");
    let mount = mount.split(' ').nth(4).unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup of version 2");
    let parent = PathBuf::from(mount).join(own);
    // Of tests that have ended: a process cannot remove its own while its last commands are ending.
    for entry in fs::read_dir(&parent).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        if name.strip_prefix("voidrun-test-").is_some_and(|pid| !is_alive(pid)) {
            remove(&entry.path());
        }
    }
    let directory = parent.join(format!("voidrun-test-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&directory) {
        panic!(
            "{}: {error}: these tests make cgroups: run them as root, or within \
             `systemd-run --user --scope --property Delegate=yes`",
            directory.display()
        );
    }
    directory
}

/// For tests that are somebody else in turn.
pub(crate) fn assert_root() {
    assert!(rustix::process::geteuid().is_root(), "only root can become somebody else");
}

/// Ends what is in a cgroup and removes it, but for what is just ending.
fn remove(cgroup: &Path) {
    drop(fs::write(cgroup.join("cgroup.kill"), "1"));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    drop(fs::remove_dir(cgroup));
}

pub(crate) struct Host {
    pub(crate) socket: UnixStream,
    decoder: Decoder,
}

/// What came back of a command.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Exit,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Host {
    /// A stream with this request on it.
    pub(crate) fn ask(request: &Request) -> Self {
        Self::raw(&encode(request).unwrap())
    }

    /// A stream with these bytes on it.
    pub(crate) fn raw(bytes: &[u8]) -> Self {
        let socket = connect();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        let mut host = Self { socket, decoder: Decoder::new(Sender::Agent) };
        host.socket.write_all(bytes).unwrap();
        host
    }

    pub(crate) fn message<T: Control>(&mut self, message: &T) {
        self.socket.write_all(&encode(message).unwrap()).unwrap();
    }

    pub(crate) fn send(&mut self, kind: FrameType, payload: &[u8]) {
        let mut bytes = Vec::new();
        Frame { kind, payload }.encode(&mut bytes).unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<(FrameType, Vec<u8>)> {
        loop {
            if self.decoder.has_frame().unwrap() {
                return self.decoder.next_frame().unwrap().map(|frame| (frame.kind, frame.payload.to_vec()));
            }
            match self.socket.read(self.decoder.space()).expect("an answer in time") {
                0 => {
                    assert!(!self.decoder.is_partial());
                    return None;
                }
                count => self.decoder.filled(count),
            }
        }
    }

    pub(crate) fn expect<T: Control>(&mut self) -> T {
        let (kind, payload) = self.next().expect("a frame");
        let frame = Frame { kind, payload: &payload };
        frame.message().unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&payload)))
    }

    pub(crate) fn done(&mut self) {
        let (kind, payload) = self.next().expect("a frame");
        assert_eq!(kind, FrameType::Done, "{}", String::from_utf8_lossy(&payload));
        assert_eq!(self.next(), None);
    }

    /// Reads output until what has come contains `text`.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        loop {
            let (kind, payload) = self.next().expect("a frame");
            assert_eq!(kind, FrameType::Stdout, "after {}", String::from_utf8_lossy(&read));
            read.extend(payload);
            let read = String::from_utf8_lossy(&read);
            if read.contains(text) {
                return read.into_owned();
            }
        }
    }

    /// Reads to the end: output, then Exit, then nothing.
    pub(crate) fn outcome(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let (kind, payload) = self.next().expect("a frame");
            match kind {
                FrameType::Stdout => outcome.stdout.extend(payload),
                FrameType::Stderr => outcome.stderr.extend(payload),
                _ => {
                    outcome.exit = Frame { kind, payload: &payload }.message().unwrap();
                    assert_eq!(self.next(), None);
                    return outcome;
                }
            }
        }
    }
}

pub(crate) fn shell(line: &str) -> Exec {
    Exec::new(Command::Shell(line.to_owned()))
}

pub(crate) fn argv(argv: &[&str]) -> Exec {
    Exec::new(Command::Argv(argv.iter().map(|&argument| argument.to_owned()).collect()))
}

/// Starts a command and waits for its Started frame.
pub(crate) fn start(exec: Exec) -> (Host, u32) {
    let mut host = Host::ask(&Request::Exec(exec));
    let Started { pid } = host.expect();
    (host, pid)
}

/// Runs a command to its end.
pub(crate) fn run(exec: Exec) -> Outcome {
    start(exec).0.outcome()
}

/// Runs a command that is refused.
pub(crate) fn refused(exec: Exec) -> Error {
    let mut host = Host::ask(&Request::Exec(exec));
    let error = host.expect();
    assert_eq!(host.next(), None);
    error
}

/// Waits, in bounds, for a condition that nothing announces.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn is_alive(pid: &str) -> bool {
    // A zombie has ended; only its entry waits for its parent.
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}
