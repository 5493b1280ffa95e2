//! A machine with the agent in it and a disk that stays, without the sandbox around it.

// The initramfs is the program's own.
#[path = "../../src/agent.rs"]
mod agent;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use protocol::{
    AGENT_PORT, Command, Config, Control, Decoder, Exec, Exit, Frame, FrameType, Hello, Request, Sender,
    Started, encode,
};
use vmm::process::SPEC_FD;
use vmm::spec::{Cpus, DiskFds, Fds, MachineSpec, MemoryMib, VERSION};

use crate::{DEATH, variable};

const CMDLINE: &str = "quiet loglevel=1 earlyprintk=serial,0x3f8,nocfg,keep reboot=k panic=-1 tsc=reliable \
                       no_timer_check pci=off random.trust_cpu=on";
/// For one answer, on an emulated CPU.
const ANSWER: Duration = Duration::from_mins(2);

/// A machine whose agent has come up.
pub(crate) struct Guest {
    process: Child,
    directory: tempfile::TempDir,
    /// The agent's own stream.
    pub(crate) control: Stream,
    _owner: UnixStream,
}

/// A stream to the agent.
pub(crate) struct Stream {
    socket: UnixStream,
    decoder: Decoder,
}

/// What came back of a command.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Exit,
}

impl Guest {
    /// A machine of `mib` MiB whose disk is `base` with `diff` over it.
    pub(crate) fn boot(base: &Path, diff: &Path, mib: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut inherited: Vec<OwnedFd> = Vec::new();
        let mut give = |descriptor: OwnedFd| {
            inherited.push(descriptor);
            SPEC_FD + inherited.len() as i32
        };
        let writable =
            |path: &Path| File::options().read(true).write(true).create(true).truncate(false).open(path);
        let listener = |name: &str| UnixListener::bind(directory.path().join(name)).unwrap();
        let (ready, its_ready) = UnixStream::pair().unwrap();
        let (owner, its_owner) = UnixStream::pair().unwrap();
        let fds = Fds {
            kvm: give(writable(Path::new("/dev/kvm")).unwrap().into()),
            kernel: Some(give(File::open(variable("VOIDRUN_KERNEL")).unwrap().into())),
            snapshot: None,
            initramfs: Some(give(in_memory(&agent::initramfs(&Config::default())).into())),
            disk: Some(DiskFds {
                base: give(File::open(base).unwrap().into()),
                lower: None,
                diff: give(writable(diff).unwrap().into()),
            }),
            lock: None,
            control: give(listener("control").into()),
            vsock: give(listener("vsock").into()),
            ready: give(its_ready.into()),
            exit: Some(give(writable(&directory.path().join("exit.json")).unwrap().into())),
            owner: Some(give(its_owner.into())),
            ports: Vec::new(),
        };
        let spec = MachineSpec {
            version: VERSION,
            id: "test".to_owned(),
            cpus: Cpus::try_from(1).unwrap(),
            memory: MemoryMib::try_from(mib).unwrap(),
            cmdline: CMDLINE.to_owned(),
            fds,
            network: None,
            boot_timeout_ms: ANSWER.as_millis() as u64,
            ttl_ms: None,
            idle_ms: None,
        };
        inherited.insert(0, in_memory(&serde_json::to_vec(&spec).unwrap()).into());
        let mappings = (SPEC_FD..).zip(inherited);
        let mappings = mappings.map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_voidrun"));
        command.arg("vmm").env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(writable(&directory.path().join("log")).unwrap());
        let process = command.fd_mappings(mappings).unwrap().spawn().unwrap();
        // What the child has inherited is open in here no longer: its end is an end of file.
        drop(command);
        let mut guest = Self { process, directory, control: Stream::new(ready), _owner: owner };
        match guest.control.next() {
            Some((kind, payload)) => assert_eq!(
                Frame { kind, payload: &payload }.message::<Hello>().unwrap().version,
                protocol::VERSION
            ),
            None => panic!("the machine has not come up: {}", guest.exit_and_log()),
        }
        guest
    }

    /// A stream with this request on it; none where the machine takes no more of them.
    pub(crate) fn ask(&self, request: &Request) -> Option<Stream> {
        let mut socket = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        let mut answer = Vec::new();
        match connect(&mut socket, &mut answer) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return None,
            Err(error) => panic!("{error}"),
        }
        assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
        let mut stream = Stream::new(socket);
        stream.send(request);
        Some(stream)
    }

    /// A command that runs, and its pid.
    pub(crate) fn start(&self, exec: Exec) -> (Stream, u32) {
        let mut stream = self.ask(&Request::Exec(exec)).unwrap();
        let Started { pid } = stream.message();
        (stream, pid)
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, exec: Exec) -> Outcome {
        self.start(exec).0.outcome()
    }

    /// Runs a shell's line, which succeeds, and gives its output.
    #[track_caller]
    pub(crate) fn shell(&self, line: &str) -> Vec<u8> {
        let outcome = self.run(shell(line));
        assert_eq!(outcome.exit.exit_code, Some(0), "{line}: {outcome:?}");
        outcome.stdout
    }

    /// Kills the machine's process.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Has the agent switch the machine off.
    pub(crate) fn power_off(mut self) {
        self.control.send(&Request::PowerOff { grace_ms: None });
        self.control.done();
        self.ends();
    }

    /// Waits for the machine to end because the guest has shut down.
    pub(crate) fn ends(mut self) {
        let end = std::time::Instant::now() + DEATH;
        while self.process.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < end, "the machine lives on: {}", self.exit_and_log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let exit = std::fs::read(self.directory.path().join("exit.json")).unwrap();
        let exit: vmm::exit::Exit = serde_json::from_slice(&exit).unwrap();
        assert_eq!(exit.reason, vmm::exit::ExitReason::Shutdown, "{}", self.exit_and_log());
    }

    /// What the machine's process has said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    fn exit_and_log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.directory.path().join(name)).unwrap();
        read("exit.json") + &read("log")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Of no use to a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Stream {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.set_write_timeout(Some(ANSWER)).unwrap();
        Self { socket, decoder: Decoder::new(Sender::Agent) }
    }

    pub(crate) fn send<T: Control>(&mut self, message: &T) {
        self.socket.write_all(&encode(message).unwrap()).unwrap();
    }

    /// The next frame; none at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<(FrameType, Vec<u8>)> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some((frame.kind, frame.payload.to_vec()));
            }
            match self.socket.read(self.decoder.space()) {
                Ok(0) => return None,
                Ok(count) => self.decoder.filled(count),
                // The machine was killed, with data of ours that it had not read.
                Err(error) if is_end(&error) => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    #[track_caller]
    pub(crate) fn message<T: Control>(&mut self) -> T {
        let (kind, payload) = self.next().expect("an answer");
        let message = Frame { kind, payload: &payload }.message();
        message.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&payload)))
    }

    #[track_caller]
    pub(crate) fn done(&mut self) {
        let (kind, payload) = self.next().expect("an answer");
        assert_eq!(kind, FrameType::Done, "{}", String::from_utf8_lossy(&payload));
    }

    /// Reads to the end of a command.
    #[track_caller]
    pub(crate) fn outcome(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let (kind, payload) = self.next().expect("the end of a command");
            match kind {
                FrameType::Stdout => outcome.stdout.extend(payload),
                FrameType::Stderr => outcome.stderr.extend(payload),
                _ => {
                    outcome.exit = Frame { kind, payload: &payload }.message().unwrap();
                    return outcome;
                }
            }
        }
    }
}

/// Asks for the agent's port; what is answered, up to the end of the line.
fn connect(socket: &mut UnixStream, answer: &mut Vec<u8>) -> io::Result<()> {
    socket.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    Ok(())
}

/// Whether the machine has closed the connection: before what was asked was written, read or answered.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

pub(crate) fn shell(line: &str) -> Exec {
    Exec::new(Command::Shell(line.to_owned()))
}

pub(crate) fn python(script: &str) -> Exec {
    Exec::new(Command::Argv(["python3", "-c", script].map(str::to_owned).to_vec()))
}

/// A file without a name, read from its beginning.
fn in_memory(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}
