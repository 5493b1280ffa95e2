//! One command, from its start to its end: bytes, signals and the size of the terminal.
//!
//! Four things go on at once, in one task: what comes from the command is written, standard input is passed on, changes of the
//! terminal's size are, and signals are. Each waits for the guest alone, so that a command which reads nothing, or
//! a reader of our output which is slow, holds up nobody else.

mod place;
mod signals;
mod terminal;

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use protocol::Exit;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

pub(super) use place::Place;
pub(super) use signals::Signals;
use terminal::RawMode;
pub(super) use terminal::{wants_terminal, window_size};

use super::error::{CliError, Interrupt};
use super::tell;
use crate::api::types::Exec;
use crate::client::Remote;
use crate::code::Transcript;
use crate::sandbox::{Event, Exec as Running, ExecError, Input, Output};

/// The agent keeps the deadline, and gives what it ends two seconds; this much later we no longer trust it to.
const SLACK: Duration = Duration::from_secs(5);

/// What is to be done.
pub(super) enum Command {
    /// A command is run.
    Run(Exec),
    /// One that runs in the background is watched, and at its terminal worked with.
    Attach { pid: u32, terminal: bool },
}

/// A command, and what it is connected to.
pub(super) struct Session<'a> {
    pub(super) remote: &'a Remote,
    pub(super) command: Command,
    /// What it is, for people.
    pub(super) what: String,
    pub(super) stdin: Stdin<'a>,
    /// Takes the output, which else is written to ours.
    pub(super) transcript: Option<&'a mut Transcript>,
    /// Told of the steps: `started`, `output`, `exited`.
    pub(super) mark: &'a dyn Fn(&'static str),
}

/// What a command reads.
#[derive(Clone, Copy)]
pub(super) enum Stdin<'a> {
    Nothing,
    Ours,
    Bytes(&'a [u8]),
}

impl Stdin<'_> {
    /// What -i asks for.
    pub(super) fn interactive(wanted: bool) -> Self {
        if wanted { Self::Ours } else { Self::Nothing }
    }
}

/// How it went.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The command has ended.
    Exit(Exit),
    /// Its time is over, and the guest has not ended it.
    Deadline,
    /// The user has asked twice.
    Killed(Interrupt),
    /// Our output has lost its reader.
    NobodyReads,
    /// The user has left a command that runs on.
    Left,
}

/// Does a verb's work with few bytes to move: one thread is enough, and starts sooner.
pub(super) fn block_on<T>(
    work: impl AsyncFnOnce(&mut Signals) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let result = runtime.block_on(async { work(&mut Signals::new()?).await });
    // The thread that reads standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}

impl<'a> Session<'a> {
    /// With its output for ours.
    pub(super) fn new(remote: &'a Remote, command: Command, what: String, stdin: Stdin<'a>) -> Self {
        Self { remote, command, what, stdin, transcript: None, mark: &|_| {} }
    }

    /// Runs the command. When it returns, the terminal is as it was.
    pub(super) async fn run(self, signals: &mut Signals) -> Result<Outcome, CliError> {
        let Self { remote, command, what, stdin, transcript, mark } = self;
        let (tty, timeout) = match &command {
            Command::Run(exec) => (exec.tty.is_some(), exec.timeout.map(Duration::from_secs_f64)),
            Command::Attach { terminal, .. } => (*terminal, None),
        };
        let started = async {
            match &command {
                Command::Run(exec) => remote.exec(exec).await,
                Command::Attach { pid, .. } => remote.attach(*pid).await,
            }
        };
        let Running { pid, mut input, mut output } = tokio::select! {
            started = started => started?,
            signal = signals.next() => return Ok(Outcome::Killed(signal)),
        };
        let attached = matches!(command, Command::Attach { .. });
        if attached && tty {
            // It may have begun at a terminal of another size. Why it cannot be told, the output tells.
            let _ = input.resize(window_size()).await;
        }
        mark("started");
        let input = Mutex::new(input);
        let _raw = if matches!(stdin, Stdin::Ours) && tty {
            RawMode::enter().map_err(CliError::Terminal)?
        } else {
            None
        };

        let result = tokio::select! {
            biased;
            result = write_output(&mut output, transcript, mark) => result,
            signal = forward_signals(remote, pid, signals) => return Ok(Outcome::Killed(signal)),
            () = deadline(timeout) => return Ok(Outcome::Deadline),
            never = follow_window(&input, tty) => match never? {},
            left = read_input(&input, stdin, attached) => return left.map(|()| Outcome::Left),
        };
        mark("exited");
        match result {
            Ok(exit) => Ok(Outcome::Exit(exit)),
            Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::NobodyReads),
            Err(Failure::Output(e)) => Err(CliError::Output(e)),
            Err(Failure::Exec(error)) => Err(CliError::Exec { what, source: error.into() }),
        }
    }
}

impl Outcome {
    /// Tells people what they have to know of it; returns the exit code.
    pub(super) fn exit_code(self, timeout: Option<Duration>) -> u8 {
        let tell_of_timeout = || {
            let time = humantime::format_duration(timeout.unwrap_or_default());
            tell(&format!("the command was ended after {time} (--timeout)"));
            124
        };
        match self {
            Self::Exit(exit) => {
                if exit.oom_killed {
                    tell(
                        "the sandbox was short of memory and the kernel has killed a process in it: --memory gives it more",
                    );
                }
                if exit.timed_out {
                    return tell_of_timeout();
                }
                // What a guest sends is no exit code before it has been looked at.
                let code = exit.exit_code.or(exit.signal.map(|signal| signal.saturating_add(128)));
                code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125)
            }
            Self::Deadline => tell_of_timeout(),
            Self::Killed(signal) => signal.exit_code(),
            // As a program that SIGPIPE has ended.
            Self::NobodyReads => 128 + 13,
            Self::Left => 0,
        }
    }
}

enum Failure {
    Exec(ExecError),
    Output(io::Error),
}

async fn write_output(
    output: &mut Output,
    mut transcript: Option<&mut Transcript>,
    mark: &dyn Fn(&'static str),
) -> Result<Exit, Failure> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match (output.next().await.map_err(Failure::Exec)?, &mut transcript) {
            (Event::Exit(exit), _) => return Ok(exit),
            (event, Some(transcript)) => transcript.push(&event),
            (Event::Stdout(bytes), None) => write(&mut stdout, &bytes).await?,
            (Event::Stderr(bytes), None) => write(&mut stderr, &bytes).await?,
        }
        mark("output");
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).await.map_err(Failure::Output)?;
    to.flush().await.map_err(Failure::Output)
}

/// Passes the command's input on. What the command does not take any more is not our failure: its end tells. Returns when the
/// user leaves, by the keys for that, a command that was `attached` to.
async fn read_input(input: &Mutex<Input>, wanted: Stdin<'_>, attached: bool) -> Result<(), CliError> {
    if let Stdin::Bytes(bytes) = wanted {
        let mut input = input.lock().await;
        if input.write(bytes).await.is_ok() {
            let _ = input.end().await;
        }
    }
    if let Stdin::Ours = wanted {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; protocol::MAX_PAYLOAD];
        let mut keys = LeaveKeys::default();
        loop {
            let count = stdin
                .read(&mut buffer)
                .await
                .map_err(|source| CliError::Input { what: "standard input".into(), source })?;
            let leaves = attached && keys.are_in(&buffer[..count]);
            if leaves || attached && count == 0 {
                return Ok(());
            }
            let mut input = input.lock().await;
            let passed = if count == 0 { input.end().await } else { input.write(&buffer[..count]).await };
            if count == 0 || passed.is_err() {
                break;
            }
        }
    }
    pending().await
}

/// Ctrl-P and then Ctrl-Q, as with docker.
#[derive(Default)]
struct LeaveKeys {
    half: bool,
}

impl LeaveKeys {
    /// Whether they end in `bytes`, which are typed next.
    fn are_in(&mut self, bytes: &[u8]) -> bool {
        const FIRST: u8 = 0x10;
        const SECOND: u8 = 0x11;
        bytes.iter().any(|byte| {
            let both = self.half && *byte == SECOND;
            self.half = *byte == FIRST;
            both
        })
    }
}

async fn follow_window(input: &Mutex<Input>, tty: bool) -> Result<Infallible, CliError> {
    if tty {
        let mut changes = signal(SignalKind::window_change()).map_err(CliError::Runtime)?;
        while changes.recv().await.is_some() && input.lock().await.resize(window_size()).await.is_ok() {}
    }
    pending().await
}

/// Passes the first signal on to the command; returns with the second one, and at once when the terminal is gone.
async fn forward_signals(remote: &Remote, pid: u32, signals: &mut Signals) -> Interrupt {
    let first = signals.next().await;
    if matches!(first, Interrupt::Hup) {
        return first;
    }
    tokio::select! {
        second = signals.next() => second,
        never = async {
            // One that does not answer is what a second signal is for.
            let _ = remote.signal(pid, first.number()).await;
            pending::<Infallible>().await
        } => match never {},
    }
}

async fn deadline(timeout: Option<Duration>) {
    match timeout.filter(|timeout| !timeout.is_zero()) {
        Some(timeout) => tokio::time::sleep(timeout.saturating_add(SLACK)).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::LeaveKeys;

    #[test]
    fn the_keys_to_leave_come_one_after_the_other() {
        for (typed, leaves) in [
            (&[&b"\x10\x11"[..]][..], true),
            (&[b"a\x10", b"\x11b"], true),
            (&[b"\x10\x10\x11"], true),
            (&[b"\x10a\x11"], false),
            (&[b"\x11\x10"], false),
        ] {
            let mut keys = LeaveKeys::default();
            assert_eq!(typed.iter().any(|bytes| keys.are_in(bytes)), leaves, "{typed:?}");
        }
    }
}
