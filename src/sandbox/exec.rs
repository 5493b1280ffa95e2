//! A command in a sandbox, from its start to its end, over a stream of its own.

use protocol::{
    AGENT_PORT, Error as AgentError, Exit, Frame, FrameError, FrameType, HEADER, MAX_PAYLOAD, Request,
    Started, WindowSize, encode,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::connect::ConnectError;
use super::frames::{FrameReader, StreamError};
use super::handle::Handle;

/// A command that runs. It is killed, with all its children, when both halves are dropped, or [`Input`] alone.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Its main process in the guest.
    pub(crate) pid: u32,
    /// What goes to it.
    pub(crate) input: Input,
    /// What comes from it.
    pub(crate) output: Output,
}

/// What goes to a command.
#[derive(Debug)]
pub(crate) struct Input {
    stream: OwnedWriteHalf,
}

/// What comes from a command.
#[derive(Debug)]
pub(crate) struct Output {
    frames: FrameReader<OwnedReadHalf>,
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
        let (mut frames, input) = self.request(&Request::Exec(exec)).await?;
        let answer = frames.next().await?;
        if answer.kind == FrameType::Error {
            return Err(ExecError::Refused(answer.message()?));
        }
        let Started { pid } = answer.message()?;
        Ok(Exec { pid, input: Input { stream: input }, output: Output { frames } })
    }

    /// Signals a command. On a stream of its own: on that of the command it would wait behind input that nobody reads.
    pub(crate) async fn signal(&self, pid: u32, signal: i32) -> Result<(), ExecError> {
        let (mut frames, _input) = self.request(&Request::Kill { pid, signal: Some(signal) }).await?;
        let answer = frames.next().await?;
        match answer.kind {
            FrameType::Error => Err(ExecError::Refused(answer.message()?)),
            FrameType::Done => Ok(()),
            found => Err(FrameError::Unexpected { found, expected: FrameType::Done }.into()),
        }
    }

    async fn request(
        &self,
        request: &Request,
    ) -> Result<(FrameReader<OwnedReadHalf>, OwnedWriteHalf), ExecError> {
        let bytes = encode(request).map_err(ExecError::TooLong)?;
        let stream: UnixStream = self.connect(AGENT_PORT).await?;
        let (reader, mut writer) = stream.into_split();
        writer.write_all(&bytes).await?;
        Ok((FrameReader::new(reader), writer))
    }
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

    /// The terminal has another size.
    pub(crate) async fn resize(&mut self, size: WindowSize) -> Result<(), ExecError> {
        Ok(self.stream.write_all(&encode(&size)?).await?)
    }

    async fn frame(&mut self, kind: FrameType, payload: &[u8]) -> Result<(), ExecError> {
        // In one piece: each write is a notification of the guest.
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        Frame { kind, payload }.encode(&mut bytes)?;
        Ok(self.stream.write_all(&bytes).await?)
    }
}

impl Output {
    /// What comes next. Dropped before it returns, nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Event, ExecError> {
        let frame = self.frames.next().await?;
        match frame.kind {
            FrameType::Stdout => Ok(Event::Stdout(frame.payload)),
            FrameType::Stderr => Ok(Event::Stderr(frame.payload)),
            FrameType::Error => Err(ExecError::Refused(frame.message()?)),
            _ => Ok(Event::Exit(frame.message()?)),
        }
    }
}
