//! A tar archive, perhaps compressed, perhaps from a pipe, as a map from names to files.
//!
//! The archive is read once, in order. Which of its files matter is known only at the end (index.json may come last), so
//! each goes into a numbered file of a scratch directory, hashed on the way. Names from the archive are keys of a map and
//! nothing else. What turns out to be a layer is then renamed into the store, the rest goes with the directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::{Input, SourceError};
use crate::convert::Limits;
use crate::image::{Descriptor, Digest, MAX_DOCUMENT};
use crate::layer::{EntryKind, Expansion, TarError, TarReader, decompress};
use crate::progress::{Event, Progress};
use crate::store::{Scratch, Store, StoreError, is_full};

/// The most entries of an archive: an image of [`crate::image::MAX_LAYERS`] layers has a few thousand.
const MAX_ENTRIES: usize = 100_000;

/// How many links are followed from one name.
const MAX_LINKS: usize = 40;

/// Bytes between two progress events.
const PROGRESS_STEP: u64 = 1 << 20;

/// The files of an archive.
#[derive(Debug)]
pub(super) struct Archive {
    input: Input,
    scratch: Scratch,
    members: HashMap<String, Member>,
    /// Bytes of all files together.
    written: u64,
}

#[derive(Debug)]
enum Member {
    File(Stored),
    /// To another name, normalised.
    Link(String),
}

/// A regular file of the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    number: usize,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Reads an archive to its end. `limits` hold for its bytes as they do for those of a layer.
pub(super) fn read(
    store: &Store,
    input: &Input,
    reader: impl Read + Send,
    limits: Limits,
    progress: Progress<'_>,
) -> Result<Archive, SourceError> {
    let failed = |source| SourceError::Read { input: input.clone(), source };
    let reader = Bounded::new(reader, limits).map_err(failed)?;
    let mut buffered = BufReader::with_capacity(256 << 10, reader);
    let mut tar = TarReader::new(&mut buffered);
    let mut archive =
        Archive { input: input.clone(), scratch: store.scratch()?, members: HashMap::new(), written: 0 };
    let mut count = 0;
    while let Some(entry) = tar.next_entry().map_err(|e| damaged(input, e))? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(SourceError::TooMany {
                input: input.clone(),
                what: "entries",
                limit: MAX_ENTRIES as u64,
            });
        }
        // The names that matter here are ASCII.
        let Some(name) = std::str::from_utf8(&entry.path).ok().map(|path| normalise("", path)) else {
            continue;
        };
        let link = |base: &str, target: &[u8]| {
            std::str::from_utf8(target).ok().map(|target| Member::Link(normalise(base, target)))
        };
        let member = match entry.kind {
            EntryKind::File { size, regions: None } => {
                archive.store(store, &mut tar, (count, &name, size), progress).map(Member::File).map(Some)?
            }
            EntryKind::HardLink { target } => link("", &target),
            EntryKind::Symlink { target } => link(parent(&name), &target),
            // A layer is never a sparse file, and nothing else is of use.
            _ => None,
        };
        if let Some(member) = member {
            // Of two entries with the same name the later one counts, as with tar.
            archive.members.insert(name, member);
        }
    }
    drain(&mut buffered).map_err(|e| damaged(input, TarError::Read(e)))?;
    Ok(archive)
}

/// A bomb is noticed below the tar reader, which knows only I/O errors.
fn damaged(input: &Input, source: TarError) -> SourceError {
    let input = input.clone();
    match source {
        TarError::Read(error) => match error.downcast::<Expansion>() {
            Ok(source) => SourceError::Expansion { input, source },
            Err(error) => SourceError::Archive { input, source: TarError::Read(error) },
        },
        source => SourceError::Archive { input, source },
    }
}

/// A stream decompressed, which ends with [`Expansion`] where it gives more than [`Limits`] grant for the bytes read so far:
/// how many there will be is not known of a pipe.
struct Bounded<'a> {
    content: Box<dyn Read + Send + 'a>,
    compressed: Arc<AtomicU64>,
    bytes: u64,
    limits: Limits,
}

impl<'a> Bounded<'a> {
    fn new(reader: impl Read + Send + 'a, limits: Limits) -> io::Result<Self> {
        let compressed = Arc::new(AtomicU64::new(0));
        let counted = Counted { reader, count: Arc::clone(&compressed) };
        let content = decompress(BufReader::with_capacity(256 << 10, counted))?;
        Ok(Self { content, compressed, bytes: 0, limits })
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(out)?;
        self.bytes += count as u64;
        let blob_bytes = self.compressed.load(Ordering::Relaxed);
        let Limits { free_bytes, ratio, .. } = self.limits;
        let max_bytes = free_bytes.saturating_add(blob_bytes.saturating_mul(ratio));
        if self.bytes > max_bytes {
            return Err(io::Error::other(Expansion { max_bytes, blob_bytes }));
        }
        Ok(count)
    }
}

/// The decoder owns its reader, so the count lies beside it.
struct Counted<R> {
    reader: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(out)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads what follows the end of the archive: a writer into a pipe should not be killed by it, and a compressed stream has
/// its checksum there. Not for ever, though.
fn drain(rest: impl Read) -> std::io::Result<u64> {
    std::io::copy(&mut rest.take(1 << 20), &mut std::io::sink())
}

impl Archive {
    fn store(
        &mut self,
        store: &Store,
        tar: &mut TarReader<impl std::io::BufRead>,
        (number, name, size): (usize, &str, u64),
        progress: Progress<'_>,
    ) -> Result<Stored, SourceError> {
        let (input, before) = (self.input.clone(), self.written);
        let no_space = |written| store.no_space(input.to_string(), before.saturating_add(size), written);
        // The header says it all: nothing is written of what cannot fit.
        if size > store.available()? {
            return Err(no_space(before).into());
        }
        let path = self.scratch.path(number);
        let mut file = BufWriter::with_capacity(256 << 10, self.scratch.create(number)?);
        let mut hash = Sha256::new();
        let (mut done, mut told) = (0, 0);
        // In a layout the name says which blob this will be.
        let claimed: Option<Digest> =
            name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
        let full_or_failed = |error: io::Error, done: u64| {
            if is_full(&error) { no_space(before + done) } else { StoreError::io("write", &path)(error) }
        };
        loop {
            let data = tar.data().map_err(|e| damaged(&input, e))?;
            if data.is_empty() {
                break;
            }
            hash.update(data);
            file.write_all(data).map_err(|e| full_or_failed(e, done))?;
            let count = data.len();
            tar.consume(count);
            done += count as u64;
            if let Some(blob) = claimed
                && done - told >= PROGRESS_STEP
            {
                told = done;
                progress(Event::Downloading { blob, done, total: size });
            }
        }
        file.flush().map_err(|e| full_or_failed(e, done))?;
        if done != size {
            return Err(damaged(&input, TarError::Truncated { at: done }));
        }
        self.written += size;
        Ok(Stored { number, digest: Digest::from_hash(hash), size })
    }

    /// Bytes on disk of the files that are not blobs of the store yet.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.scratch.allocated()
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// The file of that name, by way of links.
    pub(super) fn find(&self, name: &str) -> Result<Stored, SourceError> {
        let mut key = normalise("", name);
        for _ in 0..MAX_LINKS {
            match self.members.get(&key) {
                Some(Member::File(stored)) => return Ok(*stored),
                Some(Member::Link(target)) => key.clone_from(target),
                None => break,
            }
        }
        Err(SourceError::Missing { input: self.input.clone(), name: name.chars().take(300).collect() })
    }

    /// A small file's content.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let stored = self.find(name)?;
        if stored.size > MAX_DOCUMENT {
            return Err(SourceError::TooLarge {
                input: self.input.clone(),
                name: name.to_owned(),
                size: stored.size,
            });
        }
        let path = self.scratch.path(stored.number);
        Ok(std::fs::read(&path).map_err(StoreError::io("read", &path))?)
    }

    /// The first bytes of a file.
    pub(super) fn start(&self, stored: Stored) -> Result<Vec<u8>, SourceError> {
        let path = self.scratch.path(stored.number);
        let mut start = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(8).read_to_end(&mut start))
            .map_err(StoreError::io("read", &path))?;
        Ok(start)
    }

    /// Makes a file a blob of the store.
    pub(super) fn take(&self, store: &Store, name: &str, blob: &Descriptor) -> Result<File, SourceError> {
        let stored = self.find(name)?;
        if stored.size != blob.size {
            return Err(SourceError::WrongSize {
                input: self.input.clone(),
                digest: blob.digest,
                expected: blob.size,
                found: stored.size,
            });
        }
        if stored.digest != blob.digest {
            return Err(SourceError::WrongDigest {
                input: self.input.clone(),
                expected: blob.digest,
                found: stored.digest,
            });
        }
        Ok(store.adopt(blob, &self.scratch.path(stored.number))?)
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `path` seen from the directory `base`, without `.`, `..` and leading slashes; it cannot leave the archive.
fn normalise(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { base.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tar with one file of zeros.
    fn zeros(size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("x").unwrap();
        header.set_size(size);
        header.set_cksum();
        [&header.as_bytes()[..], &vec![0; size.next_multiple_of(512) as usize + 1024]].concat()
    }

    fn read_from(bytes: &[u8], limits: Limits) -> Result<Archive, SourceError> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        read(&store, &Input::Stdin, bytes, limits, &|_| {})
    }

    #[test]
    fn the_whole_stream_is_bounded() {
        let bomb = zstd::encode_all(&zeros(32 << 20)[..], 19).unwrap();
        let limits = Limits { free_bytes: 1 << 20, ratio: 100, ..Limits::default() };
        let error = read_from(&bomb, limits).unwrap_err();
        assert!(
            matches!(&error, SourceError::Expansion { source, .. } if source.max_bytes < 2 << 20),
            "{error}"
        );
        assert!(read_from(&zeros(4 << 20), limits).is_ok(), "not compressed: nothing expands");
        assert!(read_from(&bomb, Limits::default()).is_ok());
    }

    #[test]
    fn a_file_that_cannot_fit_is_not_begun() {
        let mut header = tar::Header::new_gnu();
        header.set_path("x").unwrap();
        header.set_size(1 << 60);
        header.set_cksum();
        let error = read_from(header.as_bytes(), Limits::default()).unwrap_err();
        let SourceError::Store(StoreError::NoSpace { needed, available, .. }) = error else {
            panic!("{error}")
        };
        assert!(needed >= 1 << 60 && needed > available);
    }

    #[test]
    fn names_stay_inside() {
        for (base, path, expected) in [
            ("", "./index.json", "index.json"),
            ("", "/etc/passwd", "etc/passwd"),
            ("", "../../x", "x"),
            ("a/b", "../c/layer.tar", "a/c/layer.tar"),
            ("a", "../../../x", "x"),
            ("a", "/x", "x"),
            ("a", "", "a"),
        ] {
            assert_eq!(normalise(base, path), expected, "{base} {path}");
        }
    }
}
