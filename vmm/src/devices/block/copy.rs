//! A diff as a file of its own: what a snapshot keeps of a disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::format::{BITMAP, DiskError, GRANULE, Layout, has};

/// What is copied at once where the kernel does not do it, in bytes.
const PIECE: u64 = 1 << 20;

/// Writes to the empty file `to` a diff of `base` that alone holds what `diff` and, where that has nothing, `lower` hold: a disk over
/// it reads as the disk of all three does. To see to it that it is on the host's disk is for the caller.
///
/// Nobody may write to the files meanwhile; those that are copied are only read. Where the file system can share blocks between
/// files, nothing is copied; elsewhere what the diffs take is, and holes stay holes. To be called outside of a machine's process,
/// whose jail has not the system calls for it.
///
/// # Errors
/// The base is no disk; a diff is damaged or belongs to another base, or the lower one is blank; the host fails to copy. What `to`
/// holds is of no use then.
pub fn copy_diff(base: &File, lower: Option<&File>, diff: &File, to: &File) -> Result<(), DiskError> {
    let layout = Layout::of(base)?;
    let lower = match lower {
        Some(file) => Some((file, layout.open_lower(file)?)),
        None => None,
    };
    let own = layout.read(diff)?;
    let shared = own.is_some() && lower.is_none() && ioctl_ficlone(to, diff).is_ok();
    if !shared {
        layout.create(to).map_err(DiskError::io("making the diff's copy"))?;
        let own = own.unwrap_or_else(|| layout.blank());
        merge(layout, lower, (diff, own), to).map_err(DiskError::io("copying the diff"))?;
    }
    Ok(())
}

/// Copies the granules of both diffs to `to`, a diff without any.
fn merge(
    layout: Layout,
    lower: Option<(&File, Vec<u8>)>,
    (diff, mut bitmap): (&File, Vec<u8>),
    to: &File,
) -> io::Result<()> {
    copy_granules(layout, diff, &bitmap, to)?;
    if let Some((file, mut below)) = lower {
        for (below, own) in below.iter_mut().zip(&mut bitmap) {
            *below &= !*own;
            *own |= *below;
        }
        copy_granules(layout, file, &below, to)?;
    }
    // The bits last, so that the copy is a sound diff at any time; of a large disk most are 0.
    for (piece, at) in bitmap.chunks(GRANULE as usize).zip((BITMAP..).step_by(GRANULE as usize)) {
        if piece.iter().any(|&byte| byte != 0) {
            to.write_all_at(piece, at)?;
        }
    }
    Ok(())
}

/// Copies the granules in `bitmap` from a diff to the same places in another one.
fn copy_granules(layout: Layout, from: &File, bitmap: &[u8], to: &File) -> io::Result<()> {
    let end = layout.size / GRANULE;
    let mut at = 0;
    while let Some(first) = (at..end).find(|&granule| has(bitmap, granule)) {
        at = (first..end).find(|&granule| !has(bitmap, granule)).unwrap_or(end);
        let [start, end] = [first, at].map(|granule| layout.data() + granule * GRANULE);
        copy_data(from, start..end, to)?;
    }
    Ok(())
}

/// Copies what is not a hole in `range`. A hole behind a bit that is set is a granule of zeros, and in the copy as well.
fn copy_data(from: &File, range: Range<u64>, to: &File) -> io::Result<()> {
    let mut at = range.start;
    while let Some(data) = next_data(from, at..range.end)? {
        at = data.end;
        copy_range(from, data, to)?;
    }
    Ok(())
}

/// The first part of `range` that is not a hole of `file`; none where all of it is. A file system that does not know its holes has
/// none.
fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(range.start)) {
        Ok(start) if start < range.end => Ok(Some(start..seek(file, SeekFrom::Hole(start))?.min(range.end))),
        // Behind the last data is no further.
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(range)),
        Err(error) => Err(error.into()),
    }
}

fn copy_range(from: &File, range: Range<u64>, to: &File) -> io::Result<()> {
    let (mut read, mut written) = (range.start, range.start);
    while written < range.end {
        let len = (range.end - written) as usize;
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), len) {
            // Between two file systems, or on one that cannot; some say it with 0.
            Ok(0) | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_by_hand(from, written..range.end, to);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, mut range: Range<u64>, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(range.end - range.start) as usize];
    while !range.is_empty() {
        let piece = &mut buffer[..PIECE.min(range.end - range.start) as usize];
        from.read_exact_at(piece, range.start)?;
        to.write_all_at(piece, range.start)?;
        range.start += piece.len() as u64;
    }
    Ok(())
}
