//! The file of a diff.
//!
//! ```text
//!   0            4096              data
//!   │ header ... │ bitmap ...      │ granule 0 │ granule 1 │ ...        sparse, as long as base and the rest together
//! ```
//!
//! The header, little-endian, the rest of its 4096 bytes zero:
//!
//! ```text
//!   0   8  magic "voiddiff"
//!   8   4  version, 1
//!   12  4  bytes a granule, 4096
//!   16  8  bytes of the base
//!   24  4  crc32c of the base's first granule: an ext4 has its UUID there, so that another image is noticed
//!   28  4  crc32c of bytes 0 to 28
//! ```
//!
//! The bitmap has a bit for each granule, the lowest of a byte first: it is set when the data area holds the granule. It
//! fills whole granules; bits after the last are 0.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes that are copied as one: the page of the host, and the block of ext4 and of most file systems of hosts.
pub const GRANULE: u64 = 4096;

pub(super) const BITMAP: u64 = GRANULE;
const MAGIC: [u8; 8] = *b"voiddiff";
const VERSION: u32 = 1;
const CHECKED: usize = 28;
/// What ext4 with 32-bit block numbers can fill; the bitmap of such a disk takes 512 MiB of memory.
const MAX_BASE: u64 = 16 << 40;

/// A disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The base is no image of a disk.
    #[error(
        "the base image has {0} bytes: it must have a whole number of 4096-byte blocks, at least one and at most 16 TiB"
    )]
    Base(u64),
    /// A field of the diff's header is wrong: the diff is damaged, or it belongs to another base.
    #[error("the diff's {field} is {found:#x}, and must be {expected:#x}")]
    Header {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it must hold.
        expected: u64,
    },
    /// The diff is shorter than it was made.
    #[error("the diff has {found} bytes, and must have {expected}: it has been cut")]
    Truncated {
        /// Bytes there are.
        found: u64,
        /// Bytes there must be.
        expected: u64,
    },
    /// The diff's bitmap has bits for what is not there.
    #[error("the diff's bitmap has bits after the end of the disk")]
    Bitmap,
    /// The diff is blank, and must not be.
    #[error("it is blank: nothing has ever been written to it")]
    Blank,
    /// The diff below the machine's own is not one of this base, or is damaged.
    #[error("the snapshot's diff cannot be used")]
    Lower(#[source] Box<Self>),
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl DiskError {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// What a diff must say, and where things are in it: both follow from its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of the base, and of the disk.
    pub(super) size: u64,
    /// crc32c of the base's first granule.
    pub(super) mark: u32,
}

impl Layout {
    pub(super) fn of(base: &File) -> Result<Self, DiskError> {
        let size = base.metadata().map_err(DiskError::io("looking at the base image"))?.len();
        if size == 0 || size > MAX_BASE || !size.is_multiple_of(GRANULE) {
            return Err(DiskError::Base(size));
        }
        let mut first = [0; GRANULE as usize];
        base.read_exact_at(&mut first, 0).map_err(DiskError::io("reading the base image"))?;
        Ok(Self { size, mark: crc32c::crc32c(&first) })
    }

    fn granules(self) -> u64 {
        self.size / GRANULE
    }

    fn bitmap_len(self) -> u64 {
        self.granules().div_ceil(8).next_multiple_of(GRANULE)
    }

    /// Where the data area begins.
    pub(super) fn data(self) -> u64 {
        BITMAP + self.bitmap_len()
    }

    fn file_len(self) -> u64 {
        self.data() + self.size
    }

    fn header(self) -> [u8; 32] {
        let mut header = [0; 32];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(GRANULE as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.size.to_le_bytes());
        header[24..28].copy_from_slice(&self.mark.to_le_bytes());
        let checksum = crc32c::crc32c(&header[..CHECKED]);
        header[28..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// The bitmap of `diff`, which is made first when it is blank.
    pub(super) fn open(self, diff: &File) -> Result<Vec<u8>, DiskError> {
        if let Some(bitmap) = self.read(diff)? {
            return Ok(bitmap);
        }
        self.create(diff).map_err(DiskError::io("making the diff"))?;
        Ok(self.blank())
    }

    /// The bitmap of a diff that holds nothing.
    pub(super) fn blank(self) -> Vec<u8> {
        vec![0; self.bitmap_len() as usize]
    }

    /// The bitmap of `diff`, which is below another one: it is not written, and was made when its machine was saved.
    pub(super) fn open_lower(self, diff: &File) -> Result<Vec<u8>, DiskError> {
        let bitmap = self.read(diff).and_then(|bitmap| bitmap.ok_or(DiskError::Blank));
        bitmap.map_err(|error| DiskError::Lower(Box::new(error)))
    }

    /// The bitmap of `diff`; none when it is blank.
    pub(super) fn read(self, diff: &File) -> Result<Option<Vec<u8>>, DiskError> {
        let mut header = [0; GRANULE as usize];
        read_or_zero(diff, &mut header, 0).map_err(DiskError::io("reading the diff's header"))?;
        let mut bitmap = self.blank();
        read_or_zero(diff, &mut bitmap, BITMAP).map_err(DiskError::io("reading the diff's bitmap"))?;
        // Whoever made the diff may have ended before the header was written: then nothing else was.
        if header.iter().chain(&bitmap).all(|&byte| byte == 0) {
            return Ok(None);
        }
        self.check(&header)?;
        let found = diff.metadata().map_err(DiskError::io("looking at the diff"))?.len();
        if found < self.file_len() {
            return Err(DiskError::Truncated { found, expected: self.file_len() });
        }
        let stray = self.granules()..self.bitmap_len() * 8;
        if stray.into_iter().any(|granule| has(&bitmap, granule)) {
            return Err(DiskError::Bitmap);
        }
        Ok(Some(bitmap))
    }

    /// Makes a diff that holds nothing.
    pub(super) fn create(self, diff: &File) -> io::Result<()> {
        // Nothing of a former life of the file may show.
        diff.set_len(0)?;
        diff.set_len(self.file_len())?;
        diff.write_all_at(&self.header(), 0)
    }

    fn check(self, found: &[u8; GRANULE as usize]) -> Result<(), DiskError> {
        let header = self.header();
        let checksum = crc32c::crc32c(&found[..CHECKED]);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let fields = [
            ("magic", 0..8, number(&header[..8])),
            ("version", 8..12, number(&header[8..12])),
            // Of what was found: then the fields below are as they were written.
            ("checksum", 28..32, u64::from(checksum)),
            ("granule size", 12..16, number(&header[12..16])),
            ("base length", 16..24, number(&header[16..24])),
            ("mark of the base", 24..28, number(&header[24..28])),
        ];
        for (field, place, expected) in fields {
            let found = number(&found[place]);
            if found != expected {
                return Err(DiskError::Header { field, found, expected });
            }
        }
        Ok(())
    }
}

/// Whether the diff with this `bitmap` holds `granule`.
pub(super) fn has(bitmap: &[u8], granule: u64) -> bool {
    bitmap[(granule / 8) as usize] & 1 << (granule % 8) != 0
}

/// Fills `bytes` from `offset` on, with zeros where the file has ended.
fn read_or_zero(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => {
                bytes.fill(0);
                break;
            }
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
