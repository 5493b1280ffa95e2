//! Guest RAM in a snapshot: only what is not as it is without it, which is zero, or as in the base of the machine's [`Origin`].
//!
//! Its pages are in runs, and each run is mapped by itself at a restore. So that this does not take long, and that a process may have so many
//! mappings, a run goes on over [`gap`] other pages at most. Those of zeros are holes of the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use vm_memory::{Bytes as _, GuestMemoryRegion as _, GuestRegionMmap, MemoryRegionAddress};

use super::header::PAGES_START;
use super::origin::Origin;
use super::{Saved, SnapshotError, Summary, failed};
use crate::GuestMemory;
use crate::jail::Pagemap;
use crate::memory::{PAGE, Run, Runs, marked, pages, parts};

/// What is looked at in one piece, in bytes.
const PIECE: usize = 1 << 20;
/// Of what the kernel is asked at once which pages of it are used, in bytes: the answer takes a 512th.
pub(super) const WINDOW: u64 = 64 << 20;
/// Compared with as a whole, which is faster than byte by byte.
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
/// The most runs of a snapshot: each may take two mappings, and by default a process may have 65,530.
pub(super) const MAX_RUNS: u64 = 8 << 10;
/// The least other pages that end a run. To map a run costs about as much as the guest's first access to that many of its pages.
const MIN_GAP: u64 = 16;

/// The pages that were written, and their checksum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ram {
    pub(super) runs: Runs,
    pub(super) crc: u32,
}

/// How many other pages a run of a RAM of `pages` may go over, so that there are not more than [`MAX_RUNS`].
pub(super) fn gap(pages: u64) -> u64 {
    pages.div_ceil(MAX_RUNS).max(MIN_GAP)
}

/// Writes the pages that are not as they are without the snapshot to an empty file. What `pagemap` shows to be untouched is not read.
pub(super) fn write(
    file: &File,
    memory: &GuestMemory,
    pagemap: Option<&Pagemap>,
    origin: Option<&Origin>,
) -> io::Result<Ram> {
    let is_over = origin.is_some_and(|origin| origin.base.is_some());
    let mut writer = Writer { file, memory, is_over, gap: gap(pages(memory)), ram: Ram::default() };
    let (mut buffer, mut without) = (vec![0; PIECE], vec![0; PIECE]);
    for (before, region) in parts(memory) {
        for window in pieces(0..region.len(), WINDOW) {
            let others = match pagemap.map(|pagemap| other(region, before, &window, pagemap, origin)) {
                Some(Ok(others)) => others,
                // It is not known, and any page may be another.
                Some(Err(_)) | None => vec![window],
            };
            for range in others.into_iter().flat_map(|part| pieces(part, PIECE as u64)) {
                let length = (range.end - range.start) as usize;
                let (piece, without) = (&mut buffer[..length], &mut without[..length]);
                region.read_slice(piece, MemoryRegionAddress(range.start)).map_err(io::Error::other)?;
                origin.map_or(Ok(()), |origin| origin.read_base(before + range.start, without))?;
                writer.take((before + range.start) / PAGE, piece, without)?;
            }
        }
    }
    file.set_len(PAGES_START + writer.ram.runs.pages() * PAGE)?;
    Ok(writer.ram)
}

/// `range` in pieces of `len`, of which the last may be shorter.
pub(super) fn pieces(range: Range<u64>, len: u64) -> impl Iterator<Item = Range<u64>> {
    range.clone().step_by(len as usize).map(move |start| start..range.end.min(start + len))
}

/// The parts of `window` in which pages may be other than without the snapshot: those that the process has for itself, those that were
/// so when it went on from one, and those of the base that the guest has given back. The region is behind `before` bytes of others.
fn other(
    region: &GuestRegionMmap,
    before: u64,
    window: &Range<u64>,
    pagemap: &Pagemap,
    origin: Option<&Origin>,
) -> io::Result<Vec<Range<u64>>> {
    let address = region.as_ptr() as u64 + window.start;
    let mut pages = pagemap.own(address, ((window.end - window.start) / PAGE) as usize)?;
    if let Some(Origin { mapped, .. }) = origin {
        let in_ram = before + window.start..before + window.end;
        mapped.over.mark(in_ram.clone(), &mut pages);
        mapped.mark_replaced(&in_ram, &mut pages);
    }
    let bytes = |page: usize| window.start + page as u64 * PAGE;
    Ok(marked(&pages).map(|range| bytes(range.start)..bytes(range.end)).collect())
}

/// Writes pages behind each other.
struct Writer<'a> {
    file: &'a File,
    memory: &'a GuestMemory,
    /// Whether there is a base: else what is left out is zero.
    is_over: bool,
    gap: u64,
    ram: Ram,
}

impl Writer<'_> {
    /// Takes pages from the one of this number on, which are behind all those before; `without` is what they are without the snapshot.
    fn take(&mut self, first: u64, bytes: &[u8], without: &[u8]) -> io::Result<()> {
        let [pages, without] = [bytes, without].map(|bytes| bytes.as_chunks::<{ PAGE as usize }>().0);
        let is_other: Vec<bool> = pages.iter().zip(without).map(|(page, without)| page != without).collect();
        for range in marked(&is_other) {
            let page = first + range.start as u64;
            self.go_on_to(page)?;
            self.append(page, &pages[range])?;
        }
        Ok(())
    }

    /// Goes on to the page of this number if it is not too far.
    fn go_on_to(&mut self, page: u64) -> io::Result<()> {
        let end = self.ram.runs.end();
        if end == 0 || page - end > self.gap {
            return Ok(());
        }
        for number in end..page {
            let mut bytes = ZEROS;
            if self.is_over {
                read(self.memory, number, &mut bytes)?;
            }
            self.append(number, &[bytes])?;
        }
        Ok(())
    }

    fn append(&mut self, first: u64, pages: &[[u8; PAGE as usize]]) -> io::Result<()> {
        self.ram.crc = crc32c::crc32c_append(self.ram.crc, pages.as_flattened());
        let start = PAGES_START + self.ram.runs.pages() * PAGE;
        let is_data: Vec<bool> = pages.iter().map(|page| *page != ZEROS).collect();
        for range in marked(&is_data) {
            let at = start + range.start as u64 * PAGE;
            self.file.write_all_at(pages[range].as_flattened(), at)?;
        }
        let run = [first, pages.len() as u64].map(u32::try_from);
        let [Ok(first), Ok(count)] = run else { return Err(io::Error::other("more RAM than there can be")) };
        self.ram.runs.add(Run { first, count }).map_err(io::Error::other)
    }
}

/// Reads the page of this number.
fn read(memory: &GuestMemory, number: u64, page: &mut [u8]) -> io::Result<()> {
    let at = number * PAGE;
    let (before, region) = parts(memory)
        .find(|(before, region)| at < before + region.len())
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    region.read_slice(page, MemoryRegionAddress(at - before)).map_err(io::Error::other)
}

/// What the snapshot in `file` is of, after its pages were compared with their checksum: all of them are read.
///
/// # Errors
/// The file is no snapshot, or is damaged.
pub fn verify(file: &File) -> Result<Summary, SnapshotError> {
    let saved = Saved::read(file)?;
    let header = &saved.header;
    let mut crc = 0;
    let mut buffer = vec![0; PIECE];
    for piece in pieces(0..header.pages_len, PIECE as u64) {
        let bytes = &mut buffer[..(piece.end - piece.start) as usize];
        file.read_exact_at(bytes, PAGES_START + piece.start).map_err(failed("reading"))?;
        crc = crc32c::crc32c_append(crc, bytes);
    }
    if crc == header.pages_crc { Ok(saved.summary()) } else { Err(SnapshotError::Checksum("its RAM")) }
}
