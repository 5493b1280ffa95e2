//! The first bytes of a snapshot. Numbers are little-endian.
//!
//! ```text
//!   0   8  "VOIDSNAP"
//!   8   4  the version of the format
//!   12  4  whether a machine has gone on from it: 0 or 1
//!   16  8  bytes of pages
//!   24  4  CRC-32C of the pages
//!   28  4  CRC-32C of the state
//!   32  8  bytes of state
//!   60  4  CRC-32C of the bytes before, the 4 at 12 taken as 0
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use super::MAX_STATE;
use crate::memory::PAGE;
use crate::spec::MemoryMib;

/// In bytes.
pub(super) const LEN: usize = 64;
/// Where the pages begin.
pub(super) const PAGES_START: u64 = PAGE;

const MAGIC: &[u8; 8] = b"VOIDSNAP";
/// What this program writes and reads.
const VERSION: u32 = 2;
/// Where the mark is.
const USED: u64 = 12;

/// A file that does not begin as a snapshot does.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Something else, or one that was not finished.
    #[error("the file is no snapshot, or was never finished")]
    NoSnapshot,
    /// One of another release.
    #[error("the snapshot is of format {0}, and this voidrun knows {VERSION}")]
    Version(u32),
    /// It has changed since it was written.
    #[error("the snapshot is damaged: its header makes no sense")]
    Damaged,
    /// Something is missing at its end, or is there besides.
    #[error("the snapshot is damaged: {found} bytes are not its length")]
    Length {
        /// How long the file is.
        found: u64,
    },
}

/// The first bytes of a snapshot. Another one over it knows it by them, but for the mark.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Header {
    pub(super) pages_len: u64,
    pub(super) pages_crc: u32,
    pub(super) state_len: u64,
    pub(super) state_crc: u32,
    #[serde(skip)]
    pub(super) used: bool,
}

impl Header {
    pub(super) fn state_start(&self) -> u64 {
        PAGES_START + self.pages_len
    }

    pub(super) fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.pages_len.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.pages_crc.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.state_crc.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.state_len.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..LEN - 4]);
        bytes[12..16].copy_from_slice(&u32::from(self.used).to_le_bytes());
        bytes[LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; LEN]) -> Result<Self, HeaderError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if &bytes[..8] != MAGIC {
            return Err(HeaderError::NoSnapshot);
        }
        // Before its checksum: another version may have it elsewhere.
        if word(8) != VERSION {
            return Err(HeaderError::Version(word(8)));
        }
        let mut checked = *bytes;
        checked[12..16].fill(0);
        let used = match word(12) {
            0 => false,
            1 => true,
            _ => return Err(HeaderError::Damaged),
        };
        let header =
            Self { pages_len: long(16), pages_crc: word(24), state_crc: word(28), state_len: long(32), used };
        let most = u64::from(MemoryMib::MAX) << 20;
        let sound = header.pages_len <= most
            && header.pages_len.is_multiple_of(PAGE)
            && header.state_len <= MAX_STATE;
        if !sound || crc32c::crc32c(&checked[..LEN - 4]) != word(LEN - 4) {
            return Err(HeaderError::Damaged);
        }
        Ok(header)
    }
}

pub(super) fn mark_used(file: &File) -> io::Result<()> {
    file.write_all_at(&1_u32.to_le_bytes(), USED)?;
    file.sync_data()
}
