//! The tar format (POSIX.1-2001, pax), as far as files, directories and links go: GNU's long names are read, pax records written.

use std::io::{self, Read};

pub(crate) const BLOCK: usize = 512;

/// The longest extended header or long name, in bytes: paths have up to 4 KiB, and some writers keep attributes there.
const MAX_EXTENSION: u64 = 1 << 20;

/// The longest path that the kernel takes.
const MAX_PATH: usize = 4096;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Where it comes from has failed.
    #[error("the archive could not be read")]
    Read(#[from] io::Error),
    /// It breaks off.
    #[error("the archive ends in the middle of an entry")]
    Short,
    /// Where a header should be is something else.
    #[error("not a tar header, or a damaged one")]
    Header,
    /// Of how many bytes: more than anybody needs.
    #[error("an extended header of {0} bytes")]
    LongExtension(u64),
    /// What stands in front of a header is not of the format.
    #[error("a damaged extended header")]
    Extension,
    /// Of how many bytes: more than the kernel takes.
    #[error("a path of {0} bytes")]
    LongPath(usize),
    /// A device, a sparse file and the like.
    #[error("{path}: entries of type {kind:?} are not unpacked")]
    Unsupported {
        /// Of which entry.
        path: String,
        /// Its type in the header.
        kind: char,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
}

impl Kind {
    const fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::Directory => b'5',
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    /// What a link points to.
    pub(crate) link: Vec<u8>,
    /// Permission bits, 0o7777.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: u64,
    /// Bytes of a file.
    pub(crate) size: u64,
}

/// Reads an archive, entry by entry.
pub(crate) struct Reader<R> {
    source: R,
    /// Of the current entry, in bytes: content that is not read, and what fills its last block.
    content: u64,
    padding: u64,
}

/// What extended headers say of the entry behind them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<u64>,
    sparse: bool,
}

impl<R: Read> Reader<R> {
    pub(crate) const fn new(source: R) -> Self {
        Self { source, content: 0, padding: 0 }
    }

    /// The next entry; `None` at the end. What was not read of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            match self.fill(&mut block)? {
                0 => return Ok(None),
                BLOCK => (),
                _ => return Err(TarError::Short),
            }
            if block.iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            let header = Header(&block);
            if !header.is_valid() {
                return Err(TarError::Header);
            }
            let size = header.number(124, 12)?;
            match block[156] {
                b'L' => extension.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extension.link = Some(until_nul(&self.extension(size)?).to_vec()),
                b'x' => parse_pax(&self.extension(size)?, &mut extension)?,
                // Defaults for all entries: nothing that is kept of one.
                b'g' => drop(self.extension(size)?),
                flag => return self.entry(&header, flag, size, extension).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        flag: u8,
        size: u64,
        extension: Extension,
    ) -> Result<Entry, TarError> {
        let path = extension.path.unwrap_or_else(|| header.path());
        let link = extension.link.unwrap_or_else(|| until_nul(&header.0[157..257]).to_vec());
        for path in [&path, &link] {
            if path.len() >= MAX_PATH {
                return Err(TarError::LongPath(path.len()));
            }
        }
        let kind = match flag {
            // The oldest archives mark a directory by a slash alone.
            b'0' | b'\0' | b'7' if flag == b'\0' && path.ends_with(b"/") => Kind::Directory,
            b'0' | b'\0' | b'7' if !extension.sparse => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            _ => {
                let kind = if extension.sparse { 'S' } else { char::from(flag) };
                return Err(TarError::Unsupported {
                    path: String::from_utf8_lossy(&path).into_owned(),
                    kind,
                });
            }
        };
        let size = if kind == Kind::File { extension.size.unwrap_or(size) } else { 0 };
        self.content = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(Entry {
            kind,
            path,
            link,
            mode: header.number(100, 8)? as u32 & 0o7777,
            uid: u32::try_from(header.number(108, 8)?).unwrap_or(0),
            gid: u32::try_from(header.number(116, 8)?).unwrap_or(0),
            // A time that is none is no reason to refuse a file.
            mtime: extension.mtime.or_else(|| header.number(136, 12).ok()).unwrap_or(0),
            size,
        })
    }

    /// The next piece of the entry's content; 0 at its end.
    pub(crate) fn read(&mut self, space: &mut [u8]) -> Result<usize, TarError> {
        let most = space.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut space[..most])?;
        if count == 0 {
            return Err(TarError::Short);
        }
        self.content -= count as u64;
        Ok(count)
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let left = self.content.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(left), &mut io::sink())?;
        (self.content, self.padding) = (0, 0);
        if skipped < left { Err(TarError::Short) } else { Ok(()) }
    }

    /// The content of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::LongExtension(size));
        }
        let padded = size.next_multiple_of(BLOCK as u64) as usize;
        let mut content = vec![0; padded];
        if self.fill(&mut content)? < padded {
            return Err(TarError::Short);
        }
        content.truncate(size as usize);
        Ok(content)
    }

    /// Reads until `space` is full or the archive ends; how much that was.
    fn fill(&mut self, space: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < space.len() {
            match self.source.read(&mut space[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }
}

struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn is_valid(&self) -> bool {
        let sum: u64 = self.0.iter().map(|&byte| u64::from(byte)).sum();
        let field: u64 = self.0[148..156].iter().map(|&byte| u64::from(byte)).sum();
        // Its own field counts as blanks.
        self.number(148, 8).is_ok_and(|stored| stored == sum - field + 8 * u64::from(b' '))
    }

    /// A number in octal, or in base 256 where the first bit is set.
    fn number(&self, at: usize, length: usize) -> Result<u64, TarError> {
        let field = &self.0[at..at + length];
        if field[0] & 0x80 != 0 {
            let (high, low) = field.split_at(length - 7.min(length - 1));
            if high[0] != 0x80 || high[1..].iter().any(|&byte| byte != 0) {
                return Err(TarError::Header);
            }
            return Ok(low.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)));
        }
        let digits =
            field.iter().skip_while(|&&byte| byte == b' ').take_while(|&&byte| byte != 0 && byte != b' ');
        digits.copied().try_fold(0u64, |number, digit| match digit {
            b'0'..=b'7' => Ok(number << 3 | u64::from(digit - b'0')),
            _ => Err(TarError::Header),
        })
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        // GNU's own format keeps times where ustar has a prefix.
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Records of `length key=value\n`.
fn parse_pax(mut records: &[u8], extension: &mut Extension) -> Result<(), TarError> {
    while !records.is_empty() {
        let blank = records.iter().position(|&byte| byte == b' ').ok_or(TarError::Extension)?;
        let length = std::str::from_utf8(&records[..blank]).ok().and_then(|text| text.parse::<usize>().ok());
        let length = length.filter(|&length| length > blank + 1).ok_or(TarError::Extension)?;
        let record = records.get(blank + 1..length).ok_or(TarError::Extension)?;
        let record = record.strip_suffix(b"\n").ok_or(TarError::Extension)?;
        records = &records[length..];
        let equals = record.iter().position(|&byte| byte == b'=').ok_or(TarError::Extension)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let number = || std::str::from_utf8(value).ok().and_then(|text| text.split('.').next()?.parse().ok());
        match key {
            // Empty: the header's own.
            b"path" => extension.path = Some(value.to_vec()).filter(|value| !value.is_empty()),
            b"linkpath" => extension.link = Some(value.to_vec()).filter(|value| !value.is_empty()),
            b"size" => extension.size = Some(number().ok_or(TarError::Extension)?),
            b"mtime" => extension.mtime = number(),
            // Its content is a map and pieces: unpacked as they stand they would be another file.
            key if key.starts_with(b"GNU.sparse.") => extension.sparse = true,
            _ => (),
        }
    }
    Ok(())
}

/// The blocks before an entry's content.
pub(crate) fn header(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    if entry.path.len() > 100 {
        pax(&mut records, b"path", &entry.path);
    }
    if entry.link.len() > 100 {
        pax(&mut records, b"linkpath", &entry.link);
    }
    let mut blocks = Vec::new();
    if !records.is_empty() {
        let length = records.len() as u64;
        blocks.extend_from_slice(&block(b'x', b"pax", b"", 0o644, [0, 0], length, 0));
        blocks.append(&mut records);
        blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
    }
    let Entry { kind, path, link, mode, uid, gid, mtime, size } = entry;
    blocks.extend_from_slice(&block(kind.flag(), path, link, *mode, [*uid, *gid], *size, *mtime));
    blocks
}

fn pax(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

fn block(
    flag: u8,
    path: &[u8],
    link: &[u8],
    mode: u32,
    owner: [u32; 2],
    size: u64,
    mtime: u64,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path[..path.len().min(100)]);
    put(100, &number(u64::from(mode), 8));
    put(108, &number(u64::from(owner[0]), 8));
    put(116, &number(u64::from(owner[1]), 8));
    put(124, &number(size, 12));
    put(136, &number(mtime, 12));
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Octal, ended by a NUL; in base 256 what is too large for it.
fn number(number: u64, length: usize) -> Vec<u8> {
    if number < 1 << (3 * (length - 1)) {
        return format!("{number:0width$o}\0", width = length - 1).into_bytes();
    }
    let mut field = vec![0; length];
    field[0] = 0x80;
    let low = number.to_be_bytes();
    let count = low.len().min(length - 1);
    field[length - count..].copy_from_slice(&low[low.len() - count..]);
    field
}

#[cfg(test)]
mod tests;
