//! Memory of flows' buffers.

use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes, all zero at first. They become memory as they are written to, and are none any more with this: an allocator may keep what it
/// gets back, and writes zeroes over it before it gives it away again.
pub(super) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: nobody else has these pages.
unsafe impl Send for Pages {}

impl Pages {
    pub(super) fn new(len: usize) -> Result<Self, Errno> {
        // SAFETY: new pages, at a place that the kernel picks.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// All of them.
    ///
    /// # Safety
    /// Called once, and what it gives is gone before this is.
    pub(super) unsafe fn take(&self) -> &'static mut [u8] {
        // SAFETY: `len` bytes that are mapped until this is dropped, initialized (zero), and of which there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: they are this one's, and the caller of `take` has seen to it that nobody refers to them. It fails for none that were
        // mapped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
