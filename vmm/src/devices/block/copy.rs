//! A diff as a file of its own: what a snapshot keeps of a disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::ioctl_ficlone;

use super::format::{BITMAP, DiskError, GRANULE, Layout, has};
use crate::sparse::copy_data;

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
        // A hole behind a bit that is set is a granule of zeros, and in the copy as well.
        copy_data(from, start..end, to)?;
    }
    Ok(())
}
