//! What a sandbox's job has written: two files of the sandbox's directory, the newest and the one before it, so that the log is
//! bounded. One line of JSON a piece of output.
//!
//! One writes, any number read; readers keep a file that is replaced open until they have read it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::lock::is_at;
use crate::sandbox::Directory;

const NEW: &str = "output.log";
const OLD: &str = "output.log.1";
/// A file that is longer makes place for a new one, in bytes.
const MAX_FILE: u64 = 8 << 20;
/// No line is longer, in bytes: a piece has 64 KiB at most.
const MAX_LINE: usize = 128 << 10;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    /// Milliseconds since 1970, by the host's clock.
    pub(crate) time_ms: u64,
    pub(crate) stream: Stream,
    /// How many pieces of this start of the job came before it.
    number: u64,
    /// Base64.
    data: String,
}

/// Where a piece comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    /// Nothing was written yet: the job has started.
    Start,
    Stdout,
    Stderr,
}

impl Line {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        // Nobody but us has written it.
        BASE64_STANDARD.decode(&self.data).unwrap_or_default()
    }
}

/// Adds to a log.
#[derive(Debug)]
pub(super) struct Writer {
    directory: Arc<Directory>,
    file: File,
    length: u64,
    /// Whether the last line has no end: the host's disk was full, or we were killed.
    torn: bool,
    next: u64,
}

impl Writer {
    /// Goes on with the log of a job that runs.
    pub(super) fn open(directory: Arc<Directory>) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(directory.path(NEW))?;
        let length = file.metadata()?.len();
        let (mut last, mut torn) = last_line(directory.path(NEW))?;
        if last.is_none() {
            last = match last_line(directory.path(OLD)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                found => found?.0,
            };
            torn = length > 0;
        }
        let next = last.map_or(0, |line| line.number + u64::from(line.stream != Stream::Start));
        Ok(Self { directory, file, length, torn, next })
    }

    /// The number of the next piece.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The job is started anew.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.next = 0;
        self.write(Stream::Start, &[])
    }

    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let written = self.write(stream, bytes);
        // Also one that could not be written was had.
        self.next += 1;
        written
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if self.length > MAX_FILE {
            std::fs::rename(self.directory.path(NEW), self.directory.path(OLD))?;
            self.file = File::options().append(true).create(true).open(self.directory.path(NEW))?;
            (self.length, self.torn) = (0, false);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (time_ms, number, data) = (now.as_millis() as u64, self.next, BASE64_STANDARD.encode(bytes));
        let mut text = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut text, &Line { time_ms, stream, number, data })?;
        text.push(b'\n');
        self.torn = true;
        self.file.write_all(&text)?;
        self.torn = false;
        self.length += text.len() as u64;
        Ok(())
    }
}

/// The last whole line of a file, and whether something that is none follows.
fn last_line(path: PathBuf) -> io::Result<(Option<Line>, bool)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // A line, and the beginning of another one.
    file.seek(SeekFrom::Start(length.saturating_sub(2 * MAX_LINE as u64)))?;
    let mut tail = Vec::new();
    file.take(2 * MAX_LINE as u64).read_to_end(&mut tail)?;
    let torn = tail.last().is_some_and(|last| *last != b'\n');
    let last = tail.rsplit(|byte| *byte == b'\n').find_map(|line| serde_json::from_slice(line).ok());
    Ok((last, torn))
}

/// Reads a log from its beginning on.
#[derive(Debug)]
pub(crate) struct Reader {
    directory: Arc<Directory>,
    file: BufReader<File>,
    /// The beginning of a line that is not whole yet.
    line: Vec<u8>,
}

impl Reader {
    pub(super) fn open(directory: Arc<Directory>) -> io::Result<Self> {
        let file = match File::open(directory.path(OLD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::open(directory.path(NEW))?,
            found => found?,
        };
        Ok(Self { directory, file: BufReader::new(file), line: Vec::new() })
    }

    /// The next line; none where there is no more of it yet.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            // Before the end is seen: what was written meanwhile to a file that is replaced is not missed.
            let current = is_at(self.file.get_ref(), &self.directory.path(NEW));
            (&mut self.file).take(MAX_LINE as u64).read_until(b'\n', &mut self.line)?;
            let whole = self.line.last() == Some(&b'\n');
            if whole || self.line.len() > MAX_LINE {
                let line = serde_json::from_slice::<Line>(&self.line);
                self.line.clear();
                match line {
                    Ok(line) if line.stream != Stream::Start => return Ok(Some(line)),
                    // Of no interest, or torn.
                    _ => continue,
                }
            }
            if current {
                return Ok(None);
            }
            self.line.clear();
            self.file = BufReader::new(File::open(self.directory.path(NEW))?);
        }
    }

    /// The lines that hold the last `count` lines of text, of both streams together; the first is cut.
    pub(crate) fn tail(&mut self, count: usize) -> io::Result<Vec<Line>> {
        // At most what two files hold.
        let mut lines = Vec::new();
        while let Some(line) = self.next()? {
            lines.push(line);
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut left = count;
        for index in (0..lines.len()).rev() {
            let bytes = lines[index].bytes();
            // The end of the last line of all ends nothing before it.
            let end = bytes.len() - usize::from(index + 1 == lines.len() && bytes.last() == Some(&b'\n'));
            for at in (0..end).rev().filter(|at| bytes[*at] == b'\n') {
                left = left.saturating_sub(1);
                if left == 0 {
                    lines[index].data = BASE64_STANDARD.encode(&bytes[at + 1..]);
                    lines.drain(..index);
                    return Ok(lines);
                }
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Sandboxes;

    fn directory() -> (tempfile::TempDir, Arc<Directory>) {
        let store = tempfile::tempdir().unwrap();
        let (directory, _) = Sandboxes::new(store.path()).create().unwrap();
        (store, Arc::new(directory))
    }

    fn all(reader: &mut Reader) -> Vec<String> {
        let lines = std::iter::from_fn(|| reader.next().unwrap());
        lines.map(|line| format!("{:?} {}", line.stream, String::from_utf8(line.bytes()).unwrap())).collect()
    }

    #[test]
    fn what_is_written_is_read_also_by_who_follows() {
        let (_store, directory) = directory();
        let mut writer = Writer::open(Arc::clone(&directory)).unwrap();
        writer.begin().unwrap();
        let mut reader = Reader::open(Arc::clone(&directory)).unwrap();
        assert_eq!(all(&mut reader), [""; 0]);
        writer.push(Stream::Stdout, b"a\n").unwrap();
        writer.push(Stream::Stderr, b"b").unwrap();
        assert_eq!(all(&mut reader), ["Stdout a\n", "Stderr b"]);
        writer.push(Stream::Stdout, b"c").unwrap();
        assert_eq!(all(&mut reader), ["Stdout c"]);
        assert_eq!(all(&mut Reader::open(directory).unwrap()).len(), 3);
    }

    #[test]
    fn another_daemon_goes_on_behind_a_torn_line() {
        let (_store, directory) = directory();
        let open = || Writer::open(Arc::clone(&directory)).unwrap();
        let mut writer = open();
        assert_eq!(writer.next(), 0);
        writer.begin().unwrap();
        assert_eq!(open().next(), 0);
        writer.push(Stream::Stdout, b"a").unwrap();
        assert_eq!(open().next(), 1);
        writer.file.write_all(br#"{"timeMs":1,"str"#).unwrap();
        let mut writer = open();
        assert_eq!(writer.next(), 1);
        writer.push(Stream::Stdout, b"b").unwrap();
        assert_eq!(all(&mut Reader::open(Arc::clone(&directory)).unwrap()), ["Stdout a", "Stdout b"]);
        writer.begin().unwrap();
        assert_eq!(open().next(), 0);
    }

    #[test]
    fn it_is_bounded_and_a_reader_that_follows_misses_nothing() {
        let (_store, directory) = directory();
        let mut writer = Writer::open(Arc::clone(&directory)).unwrap();
        let mut reader = Reader::open(Arc::clone(&directory)).unwrap();
        let (mut seen, piece) = (0, vec![b'x'; 60_000]);
        for number in 0..400 {
            writer.push(Stream::Stdout, &piece).unwrap();
            if number % 50 == 0 {
                while let Some(line) = reader.next().unwrap() {
                    assert_eq!(line.number, seen);
                    seen += 1;
                }
            }
        }
        let length = |name| directory.path(name).metadata().unwrap().len();
        assert!(length(NEW) + length(OLD) < 2 * (MAX_FILE + MAX_LINE as u64));
        assert_eq!(Writer::open(Arc::clone(&directory)).unwrap().next(), 400);
        assert_eq!(seen, 351);
        // Just after the files were changed the next number is in the older one.
        std::fs::rename(directory.path(NEW), directory.path(OLD)).unwrap();
        assert_eq!(Writer::open(directory).unwrap().next(), 400);
    }

    #[test]
    fn the_last_lines() {
        let (_store, directory) = directory();
        let mut writer = Writer::open(Arc::clone(&directory)).unwrap();
        for text in ["1\n2\n", "3", "\n4\n5", "\n"] {
            writer.push(Stream::Stdout, text.as_bytes()).unwrap();
        }
        let tail = |count| {
            let mut reader = Reader::open(Arc::clone(&directory)).unwrap();
            let lines = reader.tail(count).unwrap();
            lines.iter().map(|line| String::from_utf8(line.bytes()).unwrap()).collect::<String>()
        };
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "5\n");
        assert_eq!(tail(2), "4\n5\n");
        assert_eq!(tail(3), "3\n4\n5\n");
        assert_eq!(tail(5), "1\n2\n3\n4\n5\n");
        assert_eq!(tail(9), "1\n2\n3\n4\n5\n");
    }
}
