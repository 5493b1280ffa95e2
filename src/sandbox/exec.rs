//! A command in a sandbox, from its start to its end, over a stream of its own.

use std::convert::Infallible;
use std::future::pending;
use std::io::Cursor;

use protocol::{
    AGENT_PORT, Error as AgentError, Exit, Frame, FrameError, FrameType, HEADER, MAX_PAYLOAD, Request,
    Sender, Started, WindowSize, encode,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::connect::ConnectError;
use super::frames::{FrameReader, Received, StreamError};
use super::handle::Handle;
use super::traffic::{Counted, Way};

/// More of a list is not taken, in commands and in bytes of each: a guest that means harm could tell of them for ever.
const MAX_PROCESSES: usize = 2048;
const MAX_COMMAND: usize = 4096;

/// A command that runs. It is killed, with all its children, when both halves are dropped.
pub(crate) struct Exec {
    /// Its main process in the guest.
    pub(crate) pid: u32,
    /// What goes to it.
    pub(crate) input: Input,
    /// What comes from it.
    pub(crate) output: Output,
}

/// The two directions of a command's stream: to the guest, or to a daemon that passes on.
pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What goes to a command.
pub(crate) struct Input {
    stream: Writer,
}

/// What comes from a command.
pub(crate) struct Output {
    frames: FrameReader<Reader>,
}

/// One thing that comes from a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Of its standard output, or its terminal.
    Stdout(Vec<u8>),
    /// Of its standard error.
    Stderr(Vec<u8>),
    /// Its end: nothing comes after it.
    Exit(Exit),
}

/// A request to the agent that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    /// The agent cannot be reached.
    #[error("the guest's agent cannot be reached")]
    Connect(#[from] ConnectError),
    /// The stream broke off.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The agent has refused, or failed.
    #[error("{0}")]
    Refused(AgentError),
    /// The request is too long for the protocol.
    #[error("the command line and its environment are too long")]
    TooLong(#[source] FrameError),
}

impl From<FrameError> for ExecError {
    fn from(error: FrameError) -> Self {
        Self::Stream(error.into())
    }
}

impl From<std::io::Error> for ExecError {
    fn from(error: std::io::Error) -> Self {
        Self::Stream(error.into())
    }
}

impl Handle {
    /// Starts a command.
    pub(crate) async fn exec(&self, exec: protocol::Exec) -> Result<Exec, ExecError> {
        self.started(&Request::Exec(exec)).await
    }

    /// The output of a detached command, from what is kept of it on, but for so many pieces. Its input goes to its terminal, if it
    /// has one.
    pub(crate) async fn attach(&self, pid: u32, skip: u64) -> Result<Exec, ExecError> {
        self.started(&Request::Attach { pid, skip }).await
    }

    /// A request that is answered by its being done.
    pub(crate) async fn ask(&self, request: &Request) -> Result<(), ExecError> {
        let (mut frames, _input) = self.request(request).await?;
        let answer = accepted(frames.next().await?)?;
        expect(FrameType::Done, answer.kind)
    }

    /// The end of a command, when it has come.
    pub(crate) async fn wait(&self, pid: u32) -> Result<Exit, ExecError> {
        let (mut frames, _input) = self.request(&Request::Wait { pid }).await?;
        Ok(accepted(frames.next().await?)?.message()?)
    }

    /// The commands that run, and the last detached ones that have ended.
    pub(crate) async fn processes(&self) -> Result<Vec<protocol::Process>, ExecError> {
        let (mut frames, _input) = self.request(&Request::List).await?;
        let mut processes = Vec::new();
        while processes.len() < MAX_PROCESSES {
            let answer = accepted(frames.next().await?)?;
            if answer.kind == FrameType::Done {
                break;
            }
            let mut process: protocol::Process = answer.message()?;
            process.command.truncate(process.command.floor_char_boundary(MAX_COMMAND));
            process.command.shrink_to_fit();
            processes.push(process);
        }
        Ok(processes)
    }

    async fn started(&self, request: &Request) -> Result<Exec, ExecError> {
        let (frames, input) = self.request(request).await?;
        Exec::begun(frames, input).await
    }

    pub(super) async fn request(
        &self,
        request: &Request,
    ) -> Result<(FrameReader<Reader>, Writer), ExecError> {
        let bytes = encode(request).map_err(ExecError::TooLong)?;
        let connected = self.connect(AGENT_PORT, &bytes).await?;
        let Way { sent, received } = self.traffic.of(request);
        sent.inc_by(bytes.len() as u64);
        let (reader, writer) = connected.stream.into_split();
        let reader = Cursor::new(connected.received).chain(reader);
        let (reader, writer) = (Counted::new(reader, received), Counted::new(writer, sent));
        Ok((FrameReader::new(Box::new(reader) as _, Sender::Agent), Box::new(writer)))
    }
}

impl Exec {
    /// A command whose start was asked for: waits until it runs, or why it does not.
    pub(crate) async fn begun(mut frames: FrameReader<Reader>, stream: Writer) -> Result<Self, ExecError> {
        let Started { pid } = accepted(frames.next().await?)?.message()?;
        Ok(Self { pid, input: Input { stream }, output: Output { frames } })
    }
}

/// An answer that is no refusal.
pub(super) fn accepted(answer: Received) -> Result<Received, ExecError> {
    if answer.kind == FrameType::Error { Err(ExecError::Refused(answer.message()?)) } else { Ok(answer) }
}

pub(super) fn expect(expected: FrameType, found: FrameType) -> Result<(), ExecError> {
    if found == expected { Ok(()) } else { Err(FrameError::Unexpected { found, expected }.into()) }
}

impl Input {
    /// Writes to the command's standard input or terminal; waits while the guest takes nothing.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), ExecError> {
        for piece in bytes.chunks(MAX_PAYLOAD) {
            self.frame(FrameType::Stdin, piece).await?;
        }
        Ok(())
    }

    /// Ends the command's standard input. The stream stays: without it the command would be killed.
    pub(crate) async fn end(&mut self) -> Result<(), ExecError> {
        self.frame(FrameType::StdinEnd, &[]).await
    }

    /// Passes `bytes` on as the whole of the command's standard input, and keeps the stream. What the command does not take is
    /// not our failure: its end tells.
    pub(crate) async fn feed(mut self, bytes: &[u8]) -> Infallible {
        if self.write(bytes).await.is_ok() {
            let _ = self.end().await;
        }
        pending().await
    }

    /// The terminal has another size.
    pub(crate) async fn resize(&mut self, size: WindowSize) -> Result<(), ExecError> {
        Ok(self.stream.write_all(&encode(&size)?).await?)
    }

    /// A frame as somebody else has made it.
    pub(crate) async fn frame(&mut self, kind: FrameType, payload: &[u8]) -> Result<(), ExecError> {
        // In one piece: each write is a notification of the guest.
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        Frame { kind, payload }.encode(&mut bytes)?;
        Ok(self.stream.write_all(&bytes).await?)
    }
}

impl Output {
    /// What comes next. Dropped before it returns, nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Event, ExecError> {
        event(self.frames.next().await?)
    }

    /// The same of a command that is attached to; none once that was left by the end of its input.
    pub(crate) async fn next_until_left(&mut self) -> Result<Option<Event>, ExecError> {
        let frame = self.frames.next().await?;
        if frame.kind == FrameType::Done { Ok(None) } else { event(frame).map(Some) }
    }
}

fn event(frame: Received) -> Result<Event, ExecError> {
    match frame.kind {
        FrameType::Stdout => Ok(Event::Stdout(frame.payload)),
        FrameType::Stderr => Ok(Event::Stderr(frame.payload)),
        FrameType::Error => Err(ExecError::Refused(frame.message()?)),
        _ => Ok(Event::Exit(frame.message()?)),
    }
}
