//! A sandbox whose agent has come up.

use std::fmt;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::Hello;
use tokio::net::UnixStream;
use vmm::control::{Client, ControlError, NetworkMetrics};
use vmm::exit::{Exit, ExitReason};

use super::connect::{ConnectError, Connected, connect};
use super::directory::Directory;
use super::process::Process;
use super::traffic::Traffic;

pub(super) const CONTROL: &str = "control.sock";
pub(super) const VSOCK: &str = "vsock.sock";
pub(super) const EXIT: &str = "exit.json";
pub(super) const LOG: &str = "vmm.log";

/// A killed process is gone in ms; it has to give back its guest's memory first.
const DEATH: Duration = Duration::from_secs(10);
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);
/// What is shown of a log, in bytes, and of a console, in lines.
const LOG_TAIL: u64 = 4096;
const CONSOLE_LINES: usize = 20;
/// Of a line of it, in characters.
const LINE: usize = 500;
/// A longer exit.json is not one, in bytes.
const MAX_EXIT: u64 = 1 << 20;

/// A machine and everything that belongs to it. It runs on when this is dropped, but for that of an ephemeral sandbox.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(super) directory: Arc<Directory>,
    pub(super) process: Process,
    /// Counts the bytes of its streams.
    pub(crate) traffic: Traffic,
    /// What its network had done when that was counted last.
    pub(crate) network: Mutex<NetworkMetrics>,
    /// The machine of an ephemeral sandbox ends when this is closed, as it is by our death.
    pub(super) _owner: Option<StdUnixStream>,
    /// The first stream of the agent, where we have started the machine; it stays open.
    pub(super) agent: Option<(UnixStream, Hello)>,
}

/// How a machine has ended, as far as that is known.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Ending {
    /// None where it is unknown: its process was killed, or has crashed, or its report cannot be read.
    pub(crate) reason: Option<ExitReason>,
    /// The last lines of the guest's console.
    console: String,
    /// The end of what the process has said; nothing where a reason is known.
    log: String,
    /// What its network has done, where that is known.
    pub(crate) network: Option<NetworkMetrics>,
    /// Why its report cannot be read, where that is so.
    #[source]
    unread: Option<io::Error>,
}

impl Handle {
    /// What the agent has said of itself.
    pub(crate) fn hello(&self) -> Option<&Hello> {
        self.agent.as_ref().map(|(_, hello)| hello)
    }

    /// A stream to a port of the guest, with `first` sent over it.
    pub(super) async fn connect(&self, port: u32, first: &[u8]) -> Result<Connected, ConnectError> {
        connect(&self.directory.socket(VSOCK), port, first).await
    }

    /// A connection to the process of the machine. Blocks.
    pub(crate) fn control(&self) -> Result<Client, ControlError> {
        self.control_within(CONTROL_TIMEOUT)
    }

    /// The same, where an answer may take this long.
    pub(crate) fn control_within(&self, timeout: Duration) -> Result<Client, ControlError> {
        Client::new(StdUnixStream::connect(self.directory.socket(CONTROL))?, timeout)
    }

    /// Returns when the machine has ended, and why it has.
    pub(crate) async fn ended(&self) -> io::Result<Ending> {
        self.process.ended().await?;
        Ok(Ending::of(&self.directory))
    }

    /// Kills the machine. Blocks until it is gone.
    pub(crate) fn end(&self) -> io::Result<()> {
        self.process.kill()?;
        if self.process.wait(DEATH)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

impl Ending {
    /// That of the last machine of a sandbox.
    pub(super) fn of(directory: &Directory) -> Self {
        let (exit, unread) = match exit_bytes(directory) {
            Ok(json) => (serde_json::from_slice::<Exit>(&json).ok(), None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Err(error) => (None, Some(error)),
        };
        if let Some(Exit { reason, console, network }) = exit {
            return Self { reason: Some(reason), console, log: String::new(), network, unread };
        }
        let log = log_tail(directory).unwrap_or_default();
        Self { reason: None, console: String::new(), log, network: None, unread }
    }
}

/// The process of the machine may have written anything.
fn exit_bytes(directory: &Directory) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(directory.path(EXIT))?.take(MAX_EXIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn log_tail(directory: &Directory) -> io::Result<String> {
    let mut log = std::fs::File::open(directory.path(LOG))?;
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut tail = Vec::new();
    log.take(LOG_TAIL).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reason, &self.unread) {
            (Some(reason), _) => reason.fmt(f)?,
            (None, None) => f.write_str("the machine's process was killed or has crashed")?,
            (None, Some(error)) => {
                write!(f, "the machine's process has ended, and why cannot be read: {error}")?;
            }
        }
        let lines: Vec<&str> =
            self.console.lines().chain(self.log.lines()).filter(|line| !line.trim().is_empty()).collect();
        for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
            // The mark tells what the guest says from what we say.
            let line: String = line.chars().take(LINE).collect();
            write!(f, "\n    | {line}")?;
        }
        Ok(())
    }
}
