//! Frames, read from a stream: of the agent, or of somebody who speaks to it through us.

use std::io;

use protocol::{Control, Decoder, Frame, FrameError, FrameType, Sender};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What one side sends over one stream.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    decoder: Decoder,
}

/// One frame.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: FrameType,
    pub(crate) payload: Vec<u8>,
}

/// A stream to the agent that is of no further use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// Reading or writing failed.
    #[error("the stream to the guest's agent failed")]
    Io(#[from] io::Error),
    /// What comes is not of the protocol.
    #[error("the guest's agent sent what is not understood")]
    Frame(#[from] FrameError),
    /// It ended too early.
    #[error("the guest's agent has ended the stream before its answer")]
    End,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads what `sender` sends.
    pub(crate) fn new(stream: R, sender: Sender) -> Self {
        Self { stream, decoder: Decoder::new(sender) }
    }

    /// The next frame. Dropped before it returns, nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Received, StreamError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Received { kind: frame.kind, payload: frame.payload.to_vec() });
            }
            match self.stream.read(self.decoder.space()).await? {
                0 => return Err(StreamError::End),
                count => self.decoder.filled(count),
            }
        }
    }

    pub(super) fn into_inner(self) -> R {
        self.stream
    }
}

impl Received {
    /// The control message in it.
    pub(crate) fn message<T: Control>(&self) -> Result<T, FrameError> {
        Frame { kind: self.kind, payload: &self.payload }.message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Started, encode};

    #[tokio::test]
    async fn frames_in_pieces_and_a_stream_that_breaks_off() {
        let mut bytes = encode(&Started { pid: 7 }).unwrap();
        Frame { kind: FrameType::Stdout, payload: b"hello" }.encode(&mut bytes).unwrap();
        for cut in 1..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let mut reader = FrameReader::new(first.chain(second), Sender::Agent);
            assert_eq!(reader.next().await.unwrap().message::<Started>().unwrap(), Started { pid: 7 });
            assert_eq!(reader.next().await.unwrap().payload, b"hello");
            assert!(matches!(reader.next().await, Err(StreamError::End)));
        }
    }

    #[tokio::test]
    async fn what_the_host_alone_sends_is_refused() {
        let mut bytes = Vec::new();
        Frame { kind: FrameType::Stdin, payload: b"x" }.encode(&mut bytes).unwrap();
        assert!(matches!(
            FrameReader::new(&bytes[..], Sender::Agent).next().await,
            Err(StreamError::Frame(_))
        ));
    }
}
