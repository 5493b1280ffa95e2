//! Guest RAM in a snapshot: only what is not zero.
//!
//! Its checksum is that of its pages, each behind its number, those of zeros left out: what is a hole and what was written does not
//! matter, and holes need not be read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use vm_memory::{
    Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap, MemoryRegionAddress,
};

use super::header::RAM_START;
use super::{Saved, SnapshotError, Summary, failed};
use crate::GuestMemory;
use crate::holes::next_data;
use crate::jail::Pagemap;
use crate::memory::PAGE;

/// What is looked at in one piece, in bytes.
const PIECE: usize = 1 << 20;
/// Of what the kernel is asked at once which pages of it are used, in bytes: the answer takes a 512th.
pub(super) const WINDOW: u64 = 64 << 20;
/// Compared with as a whole, which is faster than byte by byte.
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ram {
    /// Bytes.
    pub(super) len: u64,
    pub(super) crc: u32,
}

/// Writes what is not zero to an empty file, which has a hole for the rest. What `pagemap` shows to be untouched is not read.
pub(super) fn write(file: &File, memory: &GuestMemory, pagemap: Option<&Pagemap>) -> io::Result<Ram> {
    let mut ram = Ram { len: 0, crc: 0 };
    let mut buffer = vec![0; PIECE];
    for region in memory.iter() {
        let windows = pieces(0..region.len(), WINDOW);
        let parts = windows.flat_map(|window| match pagemap.map(|pagemap| used(region, &window, pagemap)) {
            Some(Ok(parts)) => parts,
            // It is not known, and any page may be other than zero.
            Some(Err(_)) | None => vec![window],
        });
        for range in parts.flat_map(|part| pieces(part, PIECE as u64)) {
            let piece = &mut buffer[..(range.end - range.start) as usize];
            region.read_slice(piece, MemoryRegionAddress(range.start)).map_err(io::Error::other)?;
            let at = ram.len + range.start;
            for run in ram.take(at, piece) {
                file.write_all_at(&piece[run.clone()], RAM_START + at + run.start as u64)?;
            }
        }
        ram.len += region.len();
    }
    file.set_len(RAM_START + ram.len)?;
    Ok(ram)
}

/// `range` in pieces of `len`, of which the last may be shorter.
pub(super) fn pieces(range: Range<u64>, len: u64) -> impl Iterator<Item = Range<u64>> {
    range.clone().step_by(len as usize).map(move |start| start..range.end.min(start + len))
}

/// The parts of `window` in which pages may be other than zero: those that the process has, and of a file's those that are no holes,
/// since the others of them are what the file holds.
fn used(region: &GuestRegionMmap, window: &Range<u64>, pagemap: &Pagemap) -> io::Result<Vec<Range<u64>>> {
    let address = region.as_ptr() as u64 + window.start;
    let mut pages = pagemap.there(address, ((window.end - window.start) / PAGE) as usize)?;
    if let Some(file) = region.file_offset() {
        let [mut at, end] = [window.start, window.end].map(|at| file.start() + at);
        let first = at;
        while let Some(data) = next_data(file.file(), at..end)? {
            at = data.end;
            let (start, end) = ((data.start - first) / PAGE, (data.end - first).div_ceil(PAGE));
            pages[start as usize..end as usize].fill(true);
        }
    }
    let mut parts = Vec::new();
    let mut start = window.start;
    for run in pages.chunk_by(PartialEq::eq) {
        let end = start + run.len() as u64 * PAGE;
        if run[0] {
            parts.push(start..end);
        }
        start = end;
    }
    Ok(parts)
}

impl Ram {
    /// Takes the pages from byte `at` on into the checksum; where those are that are not zero, neighbours together.
    fn take(&mut self, at: u64, pages: &[u8]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (index, page) in pages.chunks(PAGE as usize).enumerate() {
            if *page == ZEROS[..page.len()] {
                continue;
            }
            let start = index * PAGE as usize;
            let number = (at + start as u64) / PAGE;
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
        found.take(found.len, piece);
        found.len += piece.len() as u64;
    }
    if found.crc == header.ram.crc { Ok(saved.summary()) } else { Err(SnapshotError::Checksum("its RAM")) }
}
