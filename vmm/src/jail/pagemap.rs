//! Which pages of its memory the process has, by the kernel's account.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, getpid};

use crate::memory::PAGE;

/// Bytes of an entry, which each page has.
const ENTRY: u64 = 8;
/// Bits of an entry: the page is in memory, or in swap; it is a file's, or shared by all who map it.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const SHARED: u64 = 1 << 61;

/// `/proc/self/pagemap`, opened before the jail is entered.
#[derive(Debug)]
pub struct Pagemap {
    file: OwnedFd,
    /// Whose pages they are: a fork inherits the file of its parent.
    process: Pid,
}

impl Pagemap {
    /// Opens the file; none where this host's kernel does not give it.
    pub fn open() -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open("/proc/self/pagemap", flags, Mode::empty()).ok()?;
        Some(Self { file, process: getpid() })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// For each of the `count` pages from `address` on, whether the process has it for itself: of a private mapping of a file those that
    /// were written to, of anonymous memory those that were touched. Any other reads as what was mapped, zeros where that was no file.
    ///
    /// # Errors
    /// The kernel does not say, or the process is a fork of the one that has opened the file.
    pub fn own(&self, address: u64, count: usize) -> io::Result<Vec<bool>> {
        if getpid() != self.process {
            return Err(io::Error::other("the account is of another process"));
        }
        let mut entries = vec![0; count * ENTRY as usize];
        let (mut filled, start) = (0, address / PAGE * ENTRY);
        while filled < entries.len() {
            match rustix::io::pread(&self.file, &mut entries[filled..], start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => filled += length,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (entries, _) = entries.as_chunks();
        let entries = entries.iter().map(|entry| u64::from_ne_bytes(*entry));
        Ok(entries.map(|entry| entry & (PRESENT | SWAPPED) != 0 && entry & SHARED == 0).collect())
    }
}
