//! Files of a sandbox: looked at and changed in their places, and their content on its way, over a stream each.

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::pin::pin;

use protocol::{CHUNK, FileEvent, FileInfo, FileRequest, Frame, FrameType, HEADER, Request};
use tokio::io::AsyncWriteExt as _;

use super::exec::{ExecError, Reader, Writer, accepted, expect};
use super::frames::{FrameReader, Received};
use super::handle::Handle;

/// More of a list is not taken, in entries and in bytes of their frames: a guest that means harm could tell of them for ever.
const MAX_ENTRIES: usize = 10_000;
const MAX_LIST: usize = 16 << 20;

/// What is in a directory, or was found.
#[derive(Debug)]
pub(crate) struct Entries {
    /// By path.
    pub(crate) entries: Vec<FileInfo>,
    /// Whether there are more.
    pub(crate) truncated: bool,
}

/// A file, or a tree as a tar stream, on its way out. Dropped before its end, the agent sends no more.
pub(crate) struct Source {
    /// What has come while it was seen whether anything does.
    first: Option<Received>,
    frames: FrameReader<Reader>,
    _stream: Writer,
}

/// A file, or a tree as a tar stream, on its way in. Dropped before its end, the agent makes no file of what it has.
pub(crate) struct Sink {
    frames: FrameReader<Reader>,
    stream: Writer,
    /// Whether the agent has said that it is.
    done: bool,
}

/// What happens to files that are watched, until this is dropped.
pub(crate) struct FileEvents {
    frames: FrameReader<Reader>,
    _stream: Writer,
}

impl fmt::Debug for FileEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileEvents").finish_non_exhaustive()
    }
}

impl Handle {
    /// What stands at a path.
    pub(crate) async fn stat(&self, path: String) -> Result<FileInfo, ExecError> {
        let (mut frames, _stream) = self.request(&Request::File(FileRequest::Stat { path })).await?;
        Ok(accepted(frames.next().await?)?.message()?)
    }

    /// The answer to a request for a list.
    pub(crate) async fn entries(&self, request: FileRequest) -> Result<Entries, ExecError> {
        let (mut frames, _stream) = self.request(&Request::File(request)).await?;
        Entries::collect(&mut frames).await
    }

    /// The content of a file.
    pub(crate) async fn read(&self, path: String) -> Result<(FileInfo, Source), ExecError> {
        let (mut frames, stream) = self.request(&Request::File(FileRequest::Read { path })).await?;
        let info = accepted(frames.next().await?)?.message()?;
        Ok((info, Source { first: None, frames, _stream: stream }))
    }

    /// A file or a tree as a tar stream, see [`Request::Download`].
    pub(crate) async fn pack(&self, path: String, follow: bool) -> Result<Source, ExecError> {
        let (mut frames, stream) = self.request(&Request::Download { path, follow }).await?;
        let first = Some(accepted(frames.next().await?)?);
        Ok(Source { first, frames, _stream: stream })
    }

    /// Begins a watch.
    pub(crate) async fn watch(&self, request: FileRequest) -> Result<FileEvents, ExecError> {
        let (mut frames, stream) = self.request(&Request::File(request)).await?;
        let answer = accepted(frames.next().await?)?;
        expect(FrameType::Done, answer.kind)?;
        Ok(FileEvents { frames, _stream: stream })
    }

    /// A request that is followed by what is to be written.
    pub(crate) async fn write(&self, request: &Request) -> Result<Sink, ExecError> {
        let (frames, stream) = self.request(request).await?;
        Ok(Sink { frames, stream, done: false })
    }
}

impl Entries {
    async fn collect(frames: &mut FrameReader<Reader>) -> Result<Self, ExecError> {
        let (mut entries, mut bytes, mut truncated) = (Vec::new(), 0, false);
        loop {
            let answer = accepted(frames.next().await?)?;
            if answer.kind == FrameType::Done {
                break;
            }
            bytes += answer.payload.len();
            if entries.len() == MAX_ENTRIES || bytes > MAX_LIST {
                truncated = true;
                break;
            }
            entries.push(answer.message::<FileInfo>()?);
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { entries, truncated })
    }
}

impl FileEvents {
    /// What comes next; none when what is watched has gone. Dropped before it returns, nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<FileEvent>, ExecError> {
        let answer = accepted(self.frames.next().await?)?;
        if answer.kind == FrameType::DataEnd { Ok(None) } else { Ok(Some(answer.message()?)) }
    }
}

impl Source {
    /// The next piece, none at the end; an error is the end as well.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, ExecError> {
        let answer = match self.first.take() {
            Some(first) => first,
            None => accepted(self.frames.next().await?)?,
        };
        if answer.kind == FrameType::DataEnd {
            return Ok(None);
        }
        expect(FrameType::Data, answer.kind)?;
        Ok(Some(answer.payload))
    }
}

impl Sink {
    /// Writes a piece; waits while the guest takes nothing.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), ExecError> {
        for piece in bytes.chunks(CHUNK) {
            self.frame(FrameType::Data, piece).await?;
        }
        Ok(())
    }

    /// That all was written; returns when it is in its place.
    pub(crate) async fn finish(mut self) -> Result<(), ExecError> {
        self.frame(FrameType::DataEnd, &[]).await?;
        self.answer().await
    }

    /// Returns when the agent has refused, while more could be written. Dropped before it returns, nothing is lost.
    pub(crate) async fn refused(&mut self) -> Result<Infallible, ExecError> {
        self.answer().await?;
        // It has all that it needs: behind an archive's own end is nothing of interest.
        pending().await
    }

    async fn answer(&mut self) -> Result<(), ExecError> {
        if !self.done {
            let answer = accepted(self.frames.next().await?)?;
            expect(FrameType::Done, answer.kind)?;
            self.done = true;
        }
        Ok(())
    }

    async fn frame(&mut self, kind: FrameType, payload: &[u8]) -> Result<(), ExecError> {
        // In one piece: each write is a notification of the guest.
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        Frame { kind, payload }.encode(&mut bytes)?;
        let Self { frames, stream, done } = self;
        let mut write = pin!(stream.write_all(&bytes));
        if !*done {
            tokio::select! {
                written = &mut write => return Ok(written?),
                answer = frames.next() => expect(FrameType::Done, accepted(answer?)?.kind)?,
            }
            *done = true;
        }
        Ok(write.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Error, ErrorCode, FileKind, Sender, encode};
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex, split};

    /// What the host reads and writes, and the agent's end.
    fn connected() -> (FrameReader<Reader>, Writer, DuplexStream) {
        let (ours, theirs) = duplex(4096);
        let (reader, writer) = split(ours);
        (FrameReader::new(Box::new(reader) as _, Sender::Agent), Box::new(writer), theirs)
    }

    fn frame(kind: FrameType, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Frame { kind, payload }.encode(&mut bytes).unwrap();
        bytes
    }

    fn full() -> Error {
        Error { code: ErrorCode::File, message: "/f: no space".to_owned(), errno: Some(28) }
    }

    #[tokio::test]
    async fn a_list_without_end_is_cut() {
        for (path, most) in
            [("/a".to_owned(), MAX_ENTRIES), (format!("/{}", "a".repeat(4000)), MAX_LIST / 4000)]
        {
            let (mut frames, writer, mut agent) = connected();
            let info = FileInfo {
                path,
                kind: FileKind::File,
                is_dir: false,
                size: u64::MAX,
                mode: u32::MAX,
                uid: 0,
                gid: 0,
                modified_ms: u64::MAX,
                target: None,
            };
            let info = encode(&info).unwrap();
            let hostile = tokio::spawn(async move { while agent.write_all(&info).await.is_ok() {} });
            let found = Entries::collect(&mut frames).await.unwrap();
            assert!(found.truncated && found.entries.len() <= most, "{}", found.entries.len());
            drop((frames, writer));
            hostile.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_refusal_is_read_while_nobody_takes_what_is_written() {
        let (frames, stream, mut agent) = connected();
        let mut sink = Sink { frames, stream, done: false };
        agent.write_all(&encode(&full()).unwrap()).await.unwrap();
        let error = sink.write(&vec![0; 1 << 20]).await.unwrap_err();
        assert!(matches!(error, ExecError::Refused(error) if error == full()));
    }

    #[tokio::test]
    async fn an_archive_that_ends_before_its_stream_is_taken() {
        let (frames, stream, mut agent) = connected();
        let mut sink = Sink { frames, stream, done: false };
        agent.write_all(&frame(FrameType::Done, b"")).await.unwrap();
        let drain = tokio::spawn(async move {
            let mut all = Vec::new();
            agent.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        sink.write(&vec![0; 1 << 20]).await.unwrap();
        sink.finish().await.unwrap();
        assert!(drain.await.unwrap() > 1 << 20);
    }

    #[tokio::test]
    async fn a_source_that_breaks_off_has_no_end() {
        for (last, whole) in [
            (frame(FrameType::DataEnd, b""), true),
            (encode(&full()).unwrap(), false),
            (frame(FrameType::Stdout, b"x"), false),
            (Vec::new(), false),
        ] {
            let (frames, stream, mut agent) = connected();
            let mut source = Source { first: None, frames, _stream: stream };
            agent.write_all(&frame(FrameType::Data, b"piece")).await.unwrap();
            agent.write_all(&last).await.unwrap();
            drop(agent);
            assert_eq!(source.next().await.unwrap().as_deref(), Some(&b"piece"[..]));
            assert_eq!(source.next().await.is_ok_and(|end| end.is_none()), whole, "{last:?}");
        }
    }
}
