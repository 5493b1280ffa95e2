//! A disk: a base that many share, a snapshot's diff that some share, and a diff of its own over both.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;
use vm_memory::VolatileSlice;

use super::format::{BITMAP, DiskError, GRANULE, Layout, has};
use crate::vectored::{length, part, read_exact_at, write_all_at};

/// A base image, which is only read, and the diff with what was written since. [`format`](super::format) draws the file. Between
/// them may lie another diff of the same base, the lower one, which is only read as well: what the snapshot held that the machine
/// goes on from.
///
/// # What survives
///
/// - The end of this process, SIGKILL too: every write that has returned. The data is written first, then the bit that
///   makes it count, both to the host's page cache.
/// - A power cut: all that was written before a [`flush`](Self::flush) that has returned. What was written after it may be
///   there, or not, or read as zeros, since the host's kernel writes bits and data back in any order. What was *not*
///   written is whole: a write of less than a granule takes the rest of it from the layers below into the diff, and there the
///   data is made durable before its bit is.
///
/// Holes of the diff say nothing: a granule that was zeroed is a hole with its bit set.
#[derive(Debug)]
pub struct Disk {
    base: File,
    lower: Option<Lower>,
    diff: File,
    layout: Layout,
    /// As in the file.
    bitmap: Vec<u8>,
    /// There may be something in the diff that is not durable.
    pub(super) unsynced: bool,
    /// The kernel tells of a lost write once, and forgets it.
    sync_failed: bool,
}

/// A diff that is never written.
#[derive(Debug)]
struct Lower {
    diff: File,
    bitmap: Vec<u8>,
}

/// What a granule is read from: the first of them that has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Diff,
    Lower,
    Base,
}

impl Disk {
    /// The disk of `base`, `lower` and `diff`. Base and lower diff must not change while they are in use; any number of disks may
    /// have them. The diff is made when it is empty and must be open for reading and writing; no other process may have it.
    ///
    /// # Errors
    /// The base is no disk, the diff is damaged or belongs to another base, or so does the lower one, which must have been made: each
    /// is left as it is.
    pub fn open(base: File, lower: Option<File>, diff: File) -> Result<Self, DiskError> {
        let layout = Layout::of(&base)?;
        let lower = match lower {
            Some(diff) => Some(Lower { bitmap: layout.open_lower(&diff)?, diff }),
            None => None,
        };
        let bitmap = layout.open(&diff)?;
        // What the last owner of the diff has not flushed is still to be.
        Ok(Self { base, lower, diff, layout, bitmap, unsynced: true, sync_failed: false })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.layout.size
    }

    /// crc32c of the base's first granule: tells one base from another.
    pub fn base_mark(&self) -> u32 {
        self.layout.mark
    }

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    /// The range is not within the disk, or the host fails to read.
    pub fn read(&self, offset: u64, into: &[VolatileSlice<'_>]) -> io::Result<()> {
        let end = self.end(offset, length(into))?;
        let mut at = offset;
        while at < end {
            let layer = self.layer(at / GRANULE);
            let mut next = (at / GRANULE + 1) * GRANULE;
            while next < end && self.layer(next / GRANULE) == layer {
                next += GRANULE;
            }
            let next = next.min(end);
            let run = part(into, (at - offset) as usize, (next - at) as usize);
            let (file, start) = self.file(layer);
            read_exact_at(file, &run, start + at)?;
            at = next;
        }
        Ok(())
    }

    /// Writes `from` at byte `offset`.
    ///
    /// # Errors
    /// The range is not within the disk, or the host fails to write, for example because its file system is full. Then the
    /// range may hold old or new bytes, and all others are as they were.
    pub fn write(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        let end = self.end(offset, length(from))?;
        if offset == end {
            return Ok(());
        }
        let (first, last) = (offset / GRANULE, (end - 1) / GRANULE);
        let (mut head, mut tail) = ([0; GRANULE as usize], [0; GRANULE as usize]);
        let before = if self.is_written(first) { 0 } else { (offset - first * GRANULE) as usize };
        let after = if self.is_written(last) { 0 } else { ((last + 1) * GRANULE - end) as usize };
        let (head, tail) = (&mut head[..before], &mut tail[..after]);
        let start = offset - before as u64;
        self.fill(first, head, start)?;
        self.fill(last, tail, end)?;

        let mut whole = Vec::with_capacity(from.len() + 2);
        whole.push(VolatileSlice::from(head));
        whole.extend_from_slice(from);
        whole.push(VolatileSlice::from(tail));
        self.unsynced = true;
        write_all_at(&self.diff, &whole, self.layout.data() + start)?;
        if before + after > 0 {
            // Sectors that nobody has written must not be lost with the power.
            self.sync()?;
        }
        self.mark_written(first, last)
    }

    /// Makes `len` bytes at byte `offset` read as zero, and gives back to the host what they took where they fill granules.
    ///
    /// # Errors
    /// As for [`write`](Self::write); [`Unsupported`](io::ErrorKind::Unsupported) where the host's file system has no holes.
    pub fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = self.end(offset, len)?;
        let (start, stop) = (offset.next_multiple_of(GRANULE), end / GRANULE * GRANULE);
        if start >= stop {
            return self.write_zeros(offset, len);
        }
        self.write_zeros(offset, start - offset)?;
        self.write_zeros(stop, end - stop)?;
        self.unsynced = true;
        // The hole first: behind a bit that is not set may lie what a write has left that did not come to its end.
        let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.diff, holes, self.layout.data() + start, stop - start)?;
        self.mark_written(start / GRANULE, stop / GRANULE - 1)
    }

    /// Makes durable what was written.
    ///
    /// One fdatasync does: data and bits are in one file, and were handed to the kernel before.
    ///
    /// # Errors
    /// The host has lost something. From then on every flush fails, because the kernel tells it only once.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.unsynced || self.sync_failed {
            self.sync()?;
            self.unsynced = false;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.sync_failed {
            return Err(io::Error::other("the host has lost data that was written before"));
        }
        let result = self.diff.sync_data();
        self.sync_failed = result.is_err();
        result
    }

    /// Less than two granules of zeros.
    fn write_zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut zeros = [0; 2 * GRANULE as usize];
        self.write(offset, &[VolatileSlice::from(&mut zeros[..len as usize])])
    }

    /// Fills a part of `granule`, which is not in the diff, from byte `offset` of the disk on.
    fn fill(&self, granule: u64, into: &mut [u8], offset: u64) -> io::Result<()> {
        let (file, start) = self.file(self.layer(granule));
        file.read_exact_at(into, start + offset)
    }

    fn layer(&self, granule: u64) -> Layer {
        match &self.lower {
            _ if self.is_written(granule) => Layer::Diff,
            Some(lower) if has(&lower.bitmap, granule) => Layer::Lower,
            _ => Layer::Base,
        }
    }

    /// The file of a layer, and where in it the disk begins.
    fn file(&self, layer: Layer) -> (&File, u64) {
        match (layer, &self.lower) {
            (Layer::Diff, _) => (&self.diff, self.layout.data()),
            (Layer::Lower, Some(lower)) => (&lower.diff, self.layout.data()),
            _ => (&self.base, 0),
        }
    }

    fn is_written(&self, granule: u64) -> bool {
        has(&self.bitmap, granule)
    }

    /// Sets the bits of `first..=last`, whose data is in the diff.
    fn mark_written(&mut self, first: u64, last: u64) -> io::Result<()> {
        let place = (first / 8) as usize..=(last / 8) as usize;
        let mut bytes = self.bitmap[place.clone()].to_vec();
        for granule in first..=last {
            bytes[(granule / 8 - first / 8) as usize] |= 1 << (granule % 8);
        }
        if bytes != self.bitmap[place.clone()] {
            self.diff.write_all_at(&bytes, BITMAP + first / 8)?;
            self.bitmap[place].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Where a range ends that lies within the disk.
    fn end(&self, offset: u64, len: u64) -> io::Result<u64> {
        offset
            .checked_add(len)
            .filter(|&end| end <= self.layout.size)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk"))
    }
}
