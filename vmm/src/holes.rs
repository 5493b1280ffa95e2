//! Files that are sparse.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The first part of `range` that is not a hole of `file`; none where all of it is. A file system that does not know its holes has
/// none.
pub(crate) fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
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
