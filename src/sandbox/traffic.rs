//! The bytes that go to guests and come from them, counted where the streams of the agent are made.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prometheus_client::metrics::counter::Counter;
use protocol::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counters that are shared with those who show them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    /// Input and output of commands and terminals.
    pub(crate) exec: Way,
    /// Files, trees and what is asked and told about them.
    pub(crate) files: Way,
}

/// Bytes, with the frames around them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// To the guest.
    pub(crate) sent: Counter,
    /// From the guest.
    pub(crate) received: Counter,
}

impl Traffic {
    /// What counts the stream of a request; that of one that carries nothing but an answer counts for nobody.
    pub(super) fn of(&self, request: &Request) -> Way {
        match request {
            Request::Exec(_) | Request::Attach { .. } => self.exec.clone(),
            Request::File(_) | Request::Upload { .. } | Request::Download { .. } => self.files.clone(),
            _ => Way::default(),
        }
    }
}

/// A stream, or one direction of it, whose bytes are counted.
pub(super) struct Counted<T> {
    stream: T,
    bytes: Counter,
}

impl<T> Counted<T> {
    pub(super) fn new(stream: T, bytes: Counter) -> Self {
        Self { stream, bytes }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.bytes.inc_by((buffer.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.bytes.inc_by(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
