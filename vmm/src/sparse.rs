//! Files that are sparse, copied as such. Not for the process of a machine: its jail has not the system calls for it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// What is copied at once where the kernel does not do it, in bytes.
const PIECE: u64 = 1 << 20;

/// Copies `from` to `to`, which is empty. Where the file system can share blocks between files, nothing is copied; elsewhere what `from`
/// takes is, and holes stay holes.
///
/// # Errors
/// The host fails to copy. What `to` holds is of no use then.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    copy_data(from, 0..length, to)
}

/// Copies what is not a hole in `range`.
pub(crate) fn copy_data(from: &File, range: Range<u64>, to: &File) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let [from, to] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(&[1; 5000], 0).unwrap();
        from.write_all_at(&[2; 5000], (32 << 20) + 7).unwrap();
        copy(&from, &to).unwrap();
        let found = to.metadata().unwrap();
        assert!(found.len() == 64 << 20 && found.blocks() * 512 < 1 << 20, "{found:?}");
        for (at, byte) in
            [(0, 1), (4999, 1), (5000, 0), ((32 << 20) + 7, 2), ((32 << 20) + 5006, 2), ((64 << 20) - 1, 0)]
        {
            let mut read = [9];
            to.read_exact_at(&mut read, at).unwrap();
            assert_eq!(read, [byte], "{at}");
        }
    }
}
