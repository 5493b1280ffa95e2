//! A disk: a base that many share and a diff of its own over it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;
use vm_memory::VolatileSlice;

use super::format::{BITMAP, DiskError, GRANULE, Layout};
use crate::vectored::{length, part, read_exact_at, write_all_at};

/// A base image, which is only read, and the diff with what was written since. [`format`](super::format) draws the file.
///
/// # What survives
///
/// - The end of this process, SIGKILL too: every write that has returned. The data is written first, then the bit that
///   makes it count, both to the host's page cache.
/// - A power cut: all that was written before a [`flush`](Self::flush) that has returned. What was written after it may be
///   there, or not, or read as zeros, since the host's kernel writes bits and data back in any order. What was *not*
///   written is whole: a write of less than a granule takes the rest of it from the base into the diff, and there the data
///   is made durable before its bit is.
///
/// Holes of the diff say nothing: a granule that was zeroed is a hole with its bit set.
#[derive(Debug)]
pub struct Disk {
    base: File,
    diff: File,
    layout: Layout,
    /// As in the file.
    bitmap: Vec<u8>,
    /// There may be something in the diff that is not durable.
    pub(super) unsynced: bool,
    /// The kernel tells of a lost write once, and forgets it.
    sync_failed: bool,
}

impl Disk {
    /// The disk of `base`, which must not change while it is in use, and `diff`, which is made when it is empty and must be
    /// open for reading and writing. No other process may have the diff.
    ///
    /// # Errors
    /// The base is no disk, or the diff is damaged or belongs to another base: it is left as it is.
    pub fn open(base: File, diff: File) -> Result<Self, DiskError> {
        let layout = Layout::of(&base)?;
        let bitmap = layout.open(&diff)?;
        // What the last owner of the diff has not flushed is still to be.
        Ok(Self { base, diff, layout, bitmap, unsynced: true, sync_failed: false })
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
            let written = self.is_written(at / GRANULE);
            let mut next = (at / GRANULE + 1) * GRANULE;
            while next < end && self.is_written(next / GRANULE) == written {
                next += GRANULE;
            }
            let next = next.min(end);
            let run = part(into, (at - offset) as usize, (next - at) as usize);
            if written {
                read_exact_at(&self.diff, &run, self.layout.data() + at)?;
            } else {
                read_exact_at(&self.base, &run, at)?;
            }
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
        self.base.read_exact_at(head, start)?;
        self.base.read_exact_at(tail, end)?;

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

    fn is_written(&self, granule: u64) -> bool {
        self.bitmap[(granule / 8) as usize] & 1 << (granule % 8) != 0
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
