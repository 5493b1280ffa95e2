//! Files to and from slices of memory, many of them in one system call.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use vm_memory::VolatileSlice;

/// The kernel takes no more in one call (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// How many bytes `slices` hold.
pub(crate) fn length(slices: &[VolatileSlice<'_>]) -> u64 {
    slices.iter().map(|slice| slice.len() as u64).sum()
}

/// `len` bytes of `slices` without the first `skip`; fewer where they end.
pub(crate) fn part<'a>(
    slices: &[VolatileSlice<'a>],
    mut skip: usize,
    mut len: usize,
) -> Vec<VolatileSlice<'a>> {
    let mut part = Vec::with_capacity(slices.len());
    for slice in slices {
        let start = skip.min(slice.len());
        let count = len.min(slice.len() - start);
        if let (true, Ok(piece)) = (count > 0, slice.subslice(start, count)) {
            part.push(piece);
        }
        skip -= start;
        len -= count;
    }
    part
}

/// Fills `slices` from `offset` on. The end of the file is an error.
pub(crate) fn read_exact_at(file: &File, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    transfer(slices, offset, io::ErrorKind::UnexpectedEof, |iovecs, offset| {
        // SAFETY: `transfer` gives no more than IOV_MAX iovecs, each of memory that stays mapped and may be written. Nothing
        // in this program holds a reference to it: guest memory is read and written through pointers alone.
        unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int, offset) }
    })
}

/// Writes all of `slices` at `offset`.
pub(crate) fn write_all_at(file: &File, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    transfer(slices, offset, io::ErrorKind::WriteZero, |iovecs, offset| {
        // SAFETY: as for preadv above, and here the memory is only read.
        unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int, offset) }
    })
}

/// Makes `call` again until all of `slices` are done. `nothing` is what it means when a call transfers nothing.
fn transfer(
    slices: &[VolatileSlice<'_>],
    mut offset: u64,
    nothing: io::ErrorKind,
    call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
) -> io::Result<()> {
    let mut iovecs: Vec<_> = slices
        .iter()
        .filter(|slice| !slice.is_empty())
        .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
        .collect();
    let mut rest = iovecs.as_mut_slice();
    while !rest.is_empty() {
        let start = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut done = match call(&rest[..rest.len().min(IOV_MAX)], start) {
            0 => return Err(nothing.into()),
            count if count > 0 => count as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        offset += done as u64;
        while let Some(first) = rest.first_mut() {
            if done < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(done);
                first.iov_len -= done;
                break;
            }
            done -= first.iov_len;
            rest = &mut rest[1..];
        }
    }
    Ok(())
}
