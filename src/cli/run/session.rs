//! One command, from its start to its end: bytes, signals and the size of the terminal.
//!
//! Four things go on at once, in one task: what comes from the command is written, standard input is passed on, changes of the
//! terminal's size are, and signals are. Each waits for the guest alone, so that a command which reads nothing, or
//! a reader of our output which is slow, holds up nobody else.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use protocol::Exit;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use super::signals::Signals;
use super::terminal::{RawMode, window_size};
use super::timings::Timings;
use crate::cli::error::{CliError, Interrupt};
use crate::sandbox::{Event, Exec, ExecError, Handle, Input, Output, StreamError};

/// The agent keeps the deadline, and gives what it ends two seconds; this much later we no longer trust it to.
const SLACK: Duration = Duration::from_secs(5);
/// The stream of a command ends a little before the process of its machine.
const ENDING: Duration = Duration::from_secs(5);

/// A command to run.
pub(super) struct Session<'a> {
    pub(super) handle: &'a Handle,
    pub(super) exec: protocol::Exec,
    pub(super) timeout: Option<Duration>,
    pub(super) timings: &'a Timings,
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
}

impl Session<'_> {
    /// Runs the command. When it returns, the terminal is as it was.
    pub(super) async fn run(self, signals: &mut Signals) -> Result<Outcome, CliError> {
        let what = match &self.exec.command {
            protocol::Command::Argv(argv) => argv.join(" "),
            protocol::Command::Shell(line) => line.clone(),
        };
        let failed = |source: ExecError| CliError::Exec { what: what.clone(), source: source.into() };
        let (stdin, tty) = (self.exec.stdin, self.exec.tty.is_some());
        let started = tokio::select! {
            started = self.handle.exec(self.exec) => started,
            signal = signals.next() => return Ok(Outcome::Killed(signal)),
        };
        let Exec { pid, input, mut output } = match started {
            Ok(exec) => exec,
            Err(error) => return Err(cause(self.handle, error).await.unwrap_or_else(failed)),
        };
        self.timings.mark("started");
        let input = Mutex::new(input);
        let _raw = if stdin && tty { RawMode::enter().map_err(CliError::Terminal)? } else { None };

        let result = tokio::select! {
            biased;
            result = write_output(&mut output, self.timings) => result,
            signal = forward_signals(self.handle, pid, signals) => return Ok(Outcome::Killed(signal)),
            () = deadline(self.timeout) => return Ok(Outcome::Deadline),
            never = follow_window(&input, tty) => match never? {},
            never = read_input(&input, stdin) => match never? {},
        };
        self.timings.mark("exited");
        match result {
            Ok(exit) => Ok(Outcome::Exit(exit)),
            Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::NobodyReads),
            Err(Failure::Output(e)) => Err(CliError::Output(e)),
            Err(Failure::Exec(error)) => Err(cause(self.handle, error).await.unwrap_or_else(failed)),
        }
    }
}

enum Failure {
    Exec(ExecError),
    Output(io::Error),
}

/// Why a stream to the agent broke off: the end of the machine, if that is what it was.
async fn cause(handle: &Handle, error: ExecError) -> Result<CliError, ExecError> {
    if let ExecError::Connect(_) | ExecError::Stream(StreamError::Io(_) | StreamError::End) = &error
        && let Ok(Ok(ending)) = tokio::time::timeout(ENDING, handle.ended()).await
    {
        return Ok(CliError::Ended(ending));
    }
    Err(error)
}

async fn write_output(output: &mut Output, timings: &Timings) -> Result<Exit, Failure> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match output.next().await.map_err(Failure::Exec)? {
            Event::Stdout(bytes) => write(&mut stdout, &bytes).await?,
            Event::Stderr(bytes) => write(&mut stderr, &bytes).await?,
            Event::Exit(exit) => return Ok(exit),
        }
        timings.mark("output");
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).await.map_err(Failure::Output)?;
    to.flush().await.map_err(Failure::Output)
}

/// Passes standard input on. What the command does not take any more is not our failure: its end tells.
async fn read_input(input: &Mutex<Input>, wanted: bool) -> Result<Infallible, CliError> {
    if wanted {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; protocol::MAX_PAYLOAD];
        loop {
            let count = stdin
                .read(&mut buffer)
                .await
                .map_err(|source| CliError::Input { what: "standard input".into(), source })?;
            let mut input = input.lock().await;
            let passed = if count == 0 { input.end().await } else { input.write(&buffer[..count]).await };
            if count == 0 || passed.is_err() {
                break;
            }
        }
    }
    pending().await
}

async fn follow_window(input: &Mutex<Input>, tty: bool) -> Result<Infallible, CliError> {
    if tty {
        let mut changes = signal(SignalKind::window_change()).map_err(CliError::Runtime)?;
        while changes.recv().await.is_some() && input.lock().await.resize(window_size()).await.is_ok() {}
    }
    pending().await
}

/// Passes the first signal on to the command; returns with the second one, and at once when the terminal is gone.
async fn forward_signals(handle: &Handle, pid: u32, signals: &mut Signals) -> Interrupt {
    let first = signals.next().await;
    if matches!(first, Interrupt::Hup) {
        return first;
    }
    tokio::select! {
        second = signals.next() => second,
        never = async {
            // A guest that does not answer is what the second signal is for.
            let _ = handle.signal(pid, first.number()).await;
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
