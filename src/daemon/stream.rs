//! The socket of a client, and whether the client is still there.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// So often it is asked whether a client is there.
const LOOK: Duration = Duration::from_secs(1);

/// A client's socket: it is closed when this is dropped, however many [`Peer`]s there are.
#[derive(Debug)]
pub(super) struct Stream(Arc<Socket>);

/// Whoever is at the other end of a [`Stream`].
#[derive(Clone, Debug)]
pub(super) struct Peer(Weak<Socket>);

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self(Arc::new(Socket::Unix(stream)))
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self(Arc::new(Socket::Tcp(stream)))
    }
}

impl Stream {
    pub(super) fn peer(&self) -> Peer {
        Peer(Arc::downgrade(&self.0))
    }
}

impl Peer {
    /// Returns when it has gone, at most about a second later. Whoever reads learns that only behind everything that was sent,
    /// and not at all while that cannot be passed on; so it is asked about here.
    pub(super) async fn gone(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.has_gone() {
                return;
            }
        }
    }

    /// Whether it has closed its socket, or will send nothing any more; also where what it has sent is not read yet. Over TCP
    /// the end comes behind what it has sent, for which there has to be room.
    fn has_gone(&self) -> bool {
        let Some(socket) = self.0.upgrade() else { return true };
        let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut asked = [PollFd::new(&*socket, PollFlags::RDHUP)];
        poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().intersects(ends)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Socket {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_read_ready(context),
            Self::Tcp(stream) => stream.poll_read_ready(context),
        }
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_write_ready(context),
            Self::Tcp(stream) => stream.poll_write_ready(context),
        }
    }

    fn try_read(&self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read_buf(buffer),
            Self::Tcp(stream) => stream.try_read_buf(buffer),
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write_vectored(slices),
            Self::Tcp(stream) => stream.try_write_vectored(slices),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&*self.0, Shutdown::Write)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn tcp() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0.into(), client)
    }

    fn unix() -> (Stream, UnixStream) {
        let (stream, client) = UnixStream::pair().unwrap();
        (stream.into(), client)
    }

    async fn passes_both_ways(mut stream: Stream, mut client: impl AsyncRead + AsyncWrite + Unpin) {
        // More than the socket holds.
        let bytes: Vec<u8> =
            (0..8_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let echoes = async {
            let mut read = vec![0; bytes.len()];
            stream.read_exact(&mut read).await.unwrap();
            stream.write_all(&read).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut read).await.unwrap(), 0);
        };
        let hears = async {
            client.write_all(&bytes).await.unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            assert!(heard == bytes);
            client.shutdown().await.unwrap();
        };
        tokio::join!(echoes, hears);
    }

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let (stream, client) = unix();
        passes_both_ways(stream, client).await;
        let (stream, client) = tcp().await;
        passes_both_ways(stream, client).await;
    }

    async fn is_missed(stream: Stream, mut client: impl AsyncWrite + Unpin) {
        let peer = stream.peer();
        client.write_all(b"what nobody reads").await.unwrap();
        assert!(!peer.has_gone());
        drop(client);
        tokio::time::timeout(Duration::from_mins(1), peer.gone()).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_is_missed_though_nobody_reads() {
        let (stream, mut client) = unix();
        // As much as there is room for.
        while client.try_write(&[0; 4096]).is_ok() {}
        let peer = stream.peer();
        assert!(!peer.has_gone());
        client.shutdown().await.unwrap();
        peer.gone().await;
        let (stream, client) = unix();
        is_missed(stream, client).await;
        let (stream, client) = tcp().await;
        is_missed(stream, client).await;
    }

    #[tokio::test]
    async fn a_socket_that_is_closed_here_has_nobody() {
        let (stream, mut client) = unix();
        let peer = stream.peer();
        drop(stream);
        assert!(peer.has_gone());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}
