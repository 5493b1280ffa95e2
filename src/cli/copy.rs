//! What `voidrun cp` moves: a thread of its own packs or unpacks, and the connection to the daemon is served beside it. Between them
//! are some pieces, no more.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::Duration;

use archive::{Error, Pack, Unpack};
use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::error::CliError;
use super::wait_for;
use crate::client::{Body, ClientError, Remote};

/// Between the two, of at most [`PIECE`] bytes each.
const PIECES: usize = 4;
const PIECE: usize = 64 << 10;
/// How often a progress bar is drawn.
const TICK: Duration = Duration::from_millis(100);
/// A sandbox does not get to make files that run as the caller for others: set-user-ID and its like stay behind.
const MODES: u32 = 0o777;

/// How much has been copied, for people.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new(shown: bool) -> Self {
        if !shown {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bytes} copied ({bytes_per_sec})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A file or tree of this machine into a sandbox.
pub(super) fn into(
    remote: &Remote,
    source: &Path,
    follow: bool,
    directory: &Path,
    name: &Path,
    what: &str,
    progress: &Progress,
) -> Result<(), CliError> {
    let (sender, receiver) = channel(PIECES);
    thread::scope(|scope| {
        // Without a name: what is in the directory.
        let name = Some(if name.as_os_str().is_empty() { OsStr::new(".") } else { name.as_os_str() });
        let thread = scope.spawn(move || {
            let mut writer = ChannelWriter { sender, piece: Vec::new() };
            let packed = archive::pack(&mut writer, &Pack { path: source, name, follow });
            writer.end(packed)
        });
        let sent = wait_for("", async {
            Ok(remote.unpack(&directory.to_string_lossy(), body(receiver, progress)).await?)
        });
        match thread.join() {
            // That nobody takes it any more has its reason on the other side.
            Ok(Err(error)) if !matches!(error, Error::Write(_)) && !is_interrupt(&sent) => {
                Err(CliError::Copy { what: what.to_owned(), source: error })
            }
            _ => sent,
        }
    })
}

/// A file or tree of a sandbox to this machine.
pub(super) fn out(
    remote: &Remote,
    path: &str,
    follow: bool,
    directory: &Path,
    name: &Path,
    what: &str,
    progress: &Progress,
) -> Result<(), CliError> {
    let (sender, receiver) = channel(PIECES);
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let mut reader = ChannelReader { receiver, piece: Bytes::new(), ended: false };
            archive::unpack(
                &mut reader,
                &Unpack { path: directory, owner: None, name: Some(name), modes: MODES },
            )
        });
        // The sender goes with it: what is not whole then does not appear.
        let fetched = wait_for("", async move {
            let body = remote.pack(path, follow).await?;
            pieces(body, async |piece| {
                progress.0.inc(piece.as_ref().map_or(0, |piece: &Bytes| piece.len() as u64));
                // Nobody takes more when the archive has ended, or is refused; why, the thread knows.
                Ok(match sender.send(piece).await {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                })
            })
            .await
        });
        match (thread.join(), fetched) {
            (Ok(Err(source)), Ok(())) => Err(CliError::Copy { what: what.to_owned(), source }),
            (_, fetched) => fetched,
        }
    })
}

/// A tar stream from standard input into a sandbox.
pub(super) async fn from_stdin(remote: &Remote, path: &str, progress: &Progress) -> Result<(), CliError> {
    let (sender, receiver) = channel(PIECES);
    let read = async move {
        let mut stdin = tokio::io::stdin();
        loop {
            let mut piece = vec![0; PIECE];
            let read = match stdin.read(&mut piece).await {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    piece.truncate(count);
                    sender.send(Ok(piece.into())).await
                }
                Err(source) => {
                    let _ = sender.send(Err(io::ErrorKind::Other.into())).await;
                    return Err(CliError::Input { what: "standard input".to_owned(), source });
                }
            };
            if read.is_err() {
                return Ok(());
            }
        }
    };
    let answer = remote.unpack(path, body(receiver, progress));
    tokio::pin!(read, answer);
    // An answer may come while more could be read.
    tokio::select! {
        answer = &mut answer => Ok(answer?),
        read = &mut read => {
            read?;
            Ok(answer.await?)
        }
    }
}

/// A file or tree of a sandbox as a tar stream to standard output.
pub(super) async fn to_stdout(
    remote: &Remote,
    path: &str,
    follow: bool,
    progress: &Progress,
) -> Result<(), CliError> {
    let mut stdout = tokio::io::stdout();
    let body = remote.pack(path, follow).await?;
    pieces(body, async |piece| {
        progress.0.inc(piece.as_ref().map_or(0, |piece: &Bytes| piece.len() as u64));
        match piece {
            Some(piece) => stdout.write_all(&piece).await.map_err(CliError::Output),
            None => stdout.flush().await.map_err(CliError::Output),
        }
        .map(ControlFlow::Continue)
    })
    .await
}

/// Gives each piece of an answer to `take`, until it takes no more, and nothing in the end: only then it is whole.
async fn pieces(
    mut body: Incoming,
    mut take: impl AsyncFnMut(Option<Bytes>) -> Result<ControlFlow<()>, CliError>,
) -> Result<(), CliError> {
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.map_err(ClientError::Http)?.into_data()
            && take(Some(piece)).await?.is_break()
        {
            return Ok(());
        }
    }
    take(None).await.map(drop)
}

/// What comes over the channel, as a request's body.
fn body(receiver: Receiver<io::Result<Bytes>>, progress: &Progress) -> Body {
    let bar = progress.0.clone();
    let frames = ReceiverStream::new(receiver).map(move |piece| {
        let piece = piece?;
        bar.inc(piece.len() as u64);
        Ok(Frame::data(piece))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn is_interrupt(result: &Result<(), CliError>) -> bool {
    matches!(result, Err(CliError::Interrupted { .. }))
}

struct ChannelWriter {
    sender: Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl ChannelWriter {
    /// Sends what is left; of an archive that has failed, that it has.
    fn end(mut self, packed: Result<(), Error>) -> Result<(), Error> {
        if packed.is_err() {
            let _ = self.sender.blocking_send(Err(io::ErrorKind::Other.into()));
            return packed;
        }
        self.flush().map_err(Error::Write)
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct ChannelReader {
    receiver: Receiver<Option<Bytes>>,
    piece: Bytes,
    ended: bool,
}

impl Read for ChannelReader {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                // Broken off, which is not the end.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = space.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut space[..count]);
        Ok(count)
    }
}
