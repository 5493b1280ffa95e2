//! Guest RAM in a snapshot: only what is not zero.
//!
//! Its checksum is that of its pages, each behind its number, those of zeros left out: what is a hole and what was written does not
//! matter, and holes need not be read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress};

use super::header::RAM_START;
use super::{Saved, SnapshotError, Summary, failed};
use crate::GuestMemory;
use crate::memory::PAGE;

/// What is looked at in one piece, in bytes.
const PIECE: usize = 1 << 20;

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ram {
    /// Bytes.
    pub(super) len: u64,
    pub(super) crc: u32,
}

/// Writes what is not zero to an empty file, which has a hole for the rest.
pub(super) fn write(file: &File, memory: &GuestMemory) -> io::Result<Ram> {
    let mut ram = Ram { len: 0, crc: 0 };
    let mut buffer = vec![0; PIECE];
    for region in memory.iter() {
        let mut at = 0;
        while at < region.len() {
            let piece = &mut buffer[..PIECE.min((region.len() - at) as usize)];
            region.read_slice(piece, MemoryRegionAddress(at)).map_err(io::Error::other)?;
            for run in ram.take(piece) {
                file.write_all_at(&piece[run.clone()], RAM_START + ram.len + run.start as u64)?;
            }
            at += piece.len() as u64;
            ram.len += piece.len() as u64;
        }
    }
    file.set_len(RAM_START + ram.len)?;
    Ok(ram)
}

impl Ram {
    /// Takes the pages from `len` on into the checksum; where those are that are not zero, neighbours together.
    fn take(&mut self, pages: &[u8]) -> Vec<std::ops::Range<usize>> {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for (index, page) in pages.chunks(PAGE as usize).enumerate() {
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            let start = index * PAGE as usize;
            let number = (self.len + start as u64) / PAGE;
            self.crc = crc32c::crc32c_append(self.crc, &number.to_le_bytes());
            self.crc = crc32c::crc32c_append(self.crc, page);
            match runs.last_mut() {
                Some(run) if run.end == start => run.end += page.len(),
                _ => runs.push(start..start + page.len()),
            }
        }
        runs
    }
}

/// What the snapshot in `file` is of, after its RAM was compared with its checksum: all of it is read.
///
/// # Errors
/// The file is no snapshot, or is damaged.
pub fn verify(file: &File) -> Result<Summary, SnapshotError> {
    let saved = Saved::read(file)?;
    let header = &saved.header;
    let mut found = Ram { len: 0, crc: 0 };
    let mut buffer = vec![0; PIECE];
    while found.len < header.ram.len {
        // A file system that knows no holes finds data everywhere.
        let data = match rustix::fs::seek(file, SeekFrom::Data(RAM_START + found.len)) {
            Ok(at) => at.saturating_sub(RAM_START),
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(failed("reading")(error.into())),
        };
        found.len = (data.max(found.len) / PAGE * PAGE).min(header.ram.len);
        let piece = &mut buffer[..PIECE.min((header.ram.len - found.len) as usize)];
        file.read_exact_at(piece, RAM_START + found.len).map_err(failed("reading"))?;
        found.take(piece);
        found.len += piece.len() as u64;
    }
    if found.crc == header.ram.crc { Ok(saved.summary()) } else { Err(SnapshotError::Checksum("its RAM")) }
}
