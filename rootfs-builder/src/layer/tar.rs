//! Framing of tar entries: ustar, GNU and PAX, in one forward pass (POSIX.1-2017, pax, "ustar Interchange
//! Format"; GNU tar manual, "Basic Tar Format").

use std::io::{self, BufRead};

use super::header::{BLOCK, Header, until_nul};
use super::sparse::{self, MAX_REGIONS, PaxSparse, Region};
use super::{Entry, EntryKind, Timestamp, pax};

/// The most bytes of extended headers and long names that one entry may have.
const MAX_EXTENDED: u64 = 1 << 20;

/// The longest path and link target, in bytes: Linux's PATH_MAX.
const MAX_PATH: usize = 4096;

/// What is wrong with a layer's tar stream.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream could not be read or decompressed.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// The stream ends within an entry.
    #[error("ends in the middle of an entry, at byte {at}")]
    Truncated {
        /// Bytes of tar so far.
        at: u64,
    },
    /// A header whose checksum is wrong: not a tar, or damaged.
    #[error("has no tar header at byte {at}")]
    Checksum {
        /// Where.
        at: u64,
    },
    /// A header field that cannot be.
    #[error("has a malformed {field} for {path:?} at byte {at}")]
    Field {
        /// Which.
        field: &'static str,
        /// Of which entry.
        path: String,
        /// Where its header ends.
        at: u64,
    },
    /// An entry of a type that no file system object corresponds to.
    #[error("has an entry of unknown type {kind:?} for {path:?}")]
    UnknownType {
        /// The type's letter.
        kind: char,
        /// The entry.
        path: String,
    },
}

/// Reads entries off a tar stream, each with its data behind it.
pub struct TarReader<R> {
    source: R,
    /// Bytes of tar consumed.
    at: u64,
    /// Stored data of the current entry that are still to come.
    remaining: u64,
    /// Filling behind them.
    padding: u64,
}

/// What extended headers say of the entry that follows them.
#[derive(Default)]
struct Overrides {
    /// Bytes of all of them.
    bytes: u64,
    /// GNU's long names, which go before PAX's.
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// The last PAX header: an earlier one is replaced as a whole (as in Go's reader).
    pax: Pax,
}

/// The records of a PAX header that matter.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timestamp>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

impl<R: BufRead> TarReader<R> {
    /// Reads from the start of a tar stream.
    pub fn new(source: R) -> Self {
        Self { source, at: 0, remaining: 0, padding: 0 }
    }

    /// The next entry; what is left of the current one's data is passed over. `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut overrides = Overrides::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.kind();
            let size = header.number(124..136).and_then(|n| u64::try_from(n).ok());
            let size = size.ok_or_else(|| self.field("size", &header.path()))?;
            match kind {
                b'x' | b'L' | b'K' => {
                    overrides.bytes = overrides.bytes.saturating_add(size);
                    if overrides.bytes > MAX_EXTENDED {
                        return Err(self.field("extended header (over 1 MiB)", &header.path()));
                    }
                    self.set_data(size);
                    let text = self.take(size)?;
                    match kind {
                        b'x' => {
                            overrides.pax =
                                Pax::parse(&text).map_err(|field| self.field(field, &header.path()))?;
                        }
                        b'L' => overrides.long_name = Some(until_nul(&text).to_vec()),
                        _ => overrides.long_link = Some(until_nul(&text).to_vec()),
                    }
                }
                // Global headers hold comments in practice; no unpacker of images applies them.
                b'g' => self.set_data(size),
                _ => return self.entry(&header, size, overrides).map(Some),
            }
        }
    }

    /// Some of the current entry's stored data; empty at their end. The caller says with [`Self::consume`] how
    /// much it has taken. Of a sparse file the stored data are its regions, one behind the other.
    pub fn data(&mut self) -> Result<&[u8], TarError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let at = self.at;
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let buffer = self.source.fill_buf().map_err(TarError::Read)?;
        if buffer.is_empty() {
            return Err(TarError::Truncated { at });
        }
        Ok(&buffer[..buffer.len().min(limit)])
    }

    /// Marks `count` bytes of what [`Self::data`] gave as taken.
    pub fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.at += count as u64;
        self.remaining -= count as u64;
    }

    fn set_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        loop {
            let count = self.data()?.len();
            if count == 0 {
                break;
            }
            self.consume(count);
        }
        self.remaining = std::mem::take(&mut self.padding);
        while self.remaining > 0 {
            match self.data().map(<[u8]>::len) {
                Ok(count) => self.consume(count),
                // Some writers leave out the padding of the last entry, and the end.
                Err(TarError::Truncated { .. }) => self.remaining = 0,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next block, or `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.source.fill_buf().map_err(TarError::Read)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.source.read_exact(&mut block).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated { at: self.at },
            _ => TarError::Read(e),
        })?;
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    /// The next header; `None` at a zero block or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block == [0; BLOCK] {
            // The end is two zero blocks; the second is often missing.
            return match self.block()? {
                Some(second) if second != [0; BLOCK] => {
                    Err(TarError::Checksum { at: self.at - BLOCK as u64 })
                }
                _ => Ok(None),
            };
        }
        let header = Header(block);
        if !header.checksum_is_right() {
            return Err(TarError::Checksum { at: self.at - BLOCK as u64 });
        }
        Ok(Some(header))
    }

    /// The next `count` bytes of data; the caller has bounded the count.
    fn take(&mut self, count: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = Vec::with_capacity(count as usize);
        while (bytes.len() as u64) < count {
            let wanted = count as usize - bytes.len();
            let piece = self.data()?;
            if piece.is_empty() {
                return Err(TarError::Truncated { at: self.at });
            }
            let piece = &piece[..piece.len().min(wanted)];
            bytes.extend_from_slice(piece);
            let taken = piece.len();
            self.consume(taken);
        }
        Ok(bytes)
    }

    /// The entry that `header` and the extended headers before it describe.
    fn entry(&mut self, header: &Header, size: u64, overrides: Overrides) -> Result<Entry, TarError> {
        let Overrides { long_name, long_link, pax: mut extra, .. } = overrides;
        let size = extra.size.unwrap_or(size);
        let path = extra.sparse.name.take().or(long_name).or(extra.path.take());
        let path = path.unwrap_or_else(|| header.path());
        let fail = |field| self.field(field, &path);
        if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
            return Err(fail("name"));
        }
        let number = |range, field| header.number(range).ok_or_else(|| fail(field));
        // The largest number means "nobody in particular" to Linux: no object can belong to it.
        let id = |over: Option<u64>, range, field| {
            let id =
                over.map_or_else(|| number(range, field), |id| i64::try_from(id).map_err(|_| fail(field)))?;
            u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or_else(|| fail(field))
        };
        let uid = id(extra.uid, 108..116, "owner")?;
        let gid = id(extra.gid, 116..124, "group")?;
        let mode = (number(100..108, "mode")? & 0o7777) as u16;
        let mtime = match extra.mtime {
            Some(mtime) => mtime,
            None => Timestamp { seconds: number(136..148, "time")?, nanoseconds: 0 },
        };
        let link = || {
            let target = long_link.as_ref().or(extra.link.as_ref());
            let target = target.cloned().unwrap_or_else(|| until_nul(&header.0[157..257]).to_vec());
            if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                return Err(self.field("link target", &path));
            }
            Ok(target)
        };
        let device = || {
            let part =
                |range| u32::try_from(number(range, "device number")?).map_err(|_| fail("device number"));
            Ok((part(329..337)?, part(337..345)?))
        };
        // Before ustar a directory was a file whose name ends in a slash.
        let has_data = matches!(header.kind(), b'0' | b'7' | 0 | b'S');
        let is_file = has_data && !path.ends_with(b"/");
        let kind = match header.kind() {
            _ if is_file => EntryKind::File { size, regions: None },
            b'0' | b'7' | 0 | b'S' | b'5' => EntryKind::Directory,
            b'1' => EntryKind::HardLink { target: link()? },
            b'2' => EntryKind::Symlink { target: link()? },
            b'3' => EntryKind::CharDevice { device: device()? },
            b'4' => EntryKind::BlockDevice { device: device()? },
            b'6' => EntryKind::Fifo,
            other => {
                return Err(TarError::UnknownType {
                    kind: other.into(),
                    path: path.escape_ascii().to_string(),
                });
            }
        };
        let xattrs = std::mem::take(&mut extra.xattrs);
        let mut entry = Entry { path, kind, mode, uid, gid, mtime, xattrs };
        // What a link or directory claims as its size is not stored (as in Go's reader).
        self.set_data(if has_data { size } else { 0 });
        if is_file {
            self.sparse(header, &extra.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    /// Reads the map of a sparse file, in whichever format it is.
    fn sparse(&mut self, header: &Header, pax: &PaxSparse, entry: &mut Entry) -> Result<(), TarError> {
        let (size, regions) = if header.kind() == b'S' {
            let (real_size, regions) =
                self.gnu_map(header)?.ok_or_else(|| self.field("sparse map", &entry.path))?;
            (real_size, regions)
        } else if pax.present {
            let regions = if pax.major == 1 { self.pax_map()? } else { pax.regions() };
            let (Some(size), Some(regions)) = (pax.size, regions) else {
                return Err(self.field("sparse map", &entry.path));
            };
            (size, regions)
        } else {
            return Ok(());
        };
        if !sparse::is_valid(&regions, size, self.remaining) {
            return Err(self.field("sparse map", &entry.path));
        }
        entry.kind = EntryKind::File { size, regions: Some(regions) };
        Ok(())
    }

    /// The real size and the map of an old GNU sparse file: four regions in the header, 21 in each block behind it.
    fn gnu_map(&mut self, header: &Header) -> Result<Option<(u64, Vec<Region>)>, TarError> {
        let mut regions = Vec::new();
        let mut block = Header(header.0);
        let (mut start, mut count, mut more) = (386, 4, 482);
        let size = header.number(483..495);
        loop {
            for at in (start..start + 24 * count).step_by(24) {
                if block.0[at] == 0 {
                    break;
                }
                let (Some(offset), Some(length)) =
                    (block.number(at..at + 12), block.number(at + 12..at + 24))
                else {
                    return Ok(None);
                };
                let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
                    return Ok(None);
                };
                regions.push(Region { offset, length });
            }
            if block.0[more] == 0 {
                break;
            }
            if regions.len() > MAX_REGIONS {
                return Ok(None);
            }
            block = Header(self.block()?.ok_or(TarError::Truncated { at: self.at })?);
            (start, count, more) = (0, 21, 504);
        }
        Ok(size.and_then(|size| u64::try_from(size).ok()).map(|size| (size, regions)))
    }

    /// The map of PAX 1.0: decimal numbers, a line each, the number of regions first, padded to a block.
    fn pax_map(&mut self) -> Result<Option<Vec<Region>>, TarError> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits = Vec::new();
        let mut expected = None;
        loop {
            if self.remaining < BLOCK as u64 {
                return Ok(None);
            }
            for byte in self.take(BLOCK as u64)? {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Ok(None);
                    }
                    continue;
                }
                let Some(number) = pax::decimal(&digits) else { return Ok(None) };
                digits.clear();
                match expected {
                    None if number > MAX_REGIONS as u64 => return Ok(None),
                    None => expected = Some(2 * number as usize),
                    Some(_) => numbers.push(number),
                }
                if expected == Some(numbers.len()) {
                    let regions = numbers.chunks_exact(2);
                    return Ok(Some(
                        regions.map(|pair| Region { offset: pair[0], length: pair[1] }).collect(),
                    ));
                }
            }
        }
    }

    fn field(&self, field: &'static str, path: &[u8]) -> TarError {
        let path = path[..path.len().min(MAX_PATH)].escape_ascii().to_string();
        TarError::Field { field, path, at: self.at }
    }
}

impl Pax {
    /// The error is the field that is malformed.
    fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        for (key, value) in pax::records(text).ok_or("PAX header")? {
            match key {
                // An empty value means that there is no such record.
                b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" if value.is_empty() => {}
                b"path" => pax.path = Some(value.to_vec()),
                b"linkpath" => pax.link = Some(value.to_vec()),
                // Sizes are added up and rounded: they stay well below 64 bits.
                b"size" => {
                    let size = pax::decimal(value).filter(|&size| i64::try_from(size).is_ok());
                    pax.size = Some(size.ok_or("PAX size")?);
                }
                b"uid" => pax.uid = Some(pax::decimal(value).ok_or("PAX uid")?),
                b"gid" => pax.gid = Some(pax::decimal(value).ok_or("PAX gid")?),
                b"mtime" => pax.mtime = Some(pax::time(value).ok_or("PAX mtime")?),
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        pax.sparse.record(key, value).ok_or("sparse map")?;
                    } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        pax.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(pax)
    }
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
