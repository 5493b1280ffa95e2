//! How much the process uses, by its own account: nobody else of the same user can look any more.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

/// Files of `/proc/self`, opened before the jail is entered. They speak of the process that has opened them: a fork inherits
/// its parent's.
#[derive(Debug)]
pub struct SelfReport {
    memory: OwnedFd,
    descriptors: OwnedFd,
}

impl SelfReport {
    /// Opens the files. The kernel checks who asks now, and not again when they are read.
    pub fn open() -> io::Result<Self> {
        let open =
            |path, flags| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty());
        Ok(Self {
            memory: open("/proc/self/smaps_rollup", OFlags::empty())?,
            descriptors: open("/proc/self/fd", OFlags::DIRECTORY)?,
        })
    }

    /// What [`enter_process`](super::enter_process) has to keep.
    pub fn fds(&self) -> [RawFd; 2] {
        [self.memory.as_raw_fd(), self.descriptors.as_raw_fd()]
    }

    /// The proportional set size in KiB: a page that N processes map counts as an N-th. The kernel walks all page tables
    /// for it, guest RAM included.
    pub fn pss_kib(&self) -> io::Result<u64> {
        self.sum(&["Pss"])
    }

    /// KiB of pages that no other process maps, with guest RAM. Costs as much as [`pss_kib`](Self::pss_kib).
    pub fn private_kib(&self) -> io::Result<u64> {
        self.sum(&["Private_Clean", "Private_Dirty"])
    }

    /// How many descriptors are open, the two of the report among them.
    pub fn open_fds(&self) -> io::Result<usize> {
        rustix::fs::seek(&self.descriptors, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&self.descriptors, &mut buffer);
        let mut count = 0;
        while let Some(entry) = entries.next() {
            // The rest are "." and "..".
            count += usize::from(!entry?.file_name().to_bytes().starts_with(b"."));
        }
        Ok(count)
    }

    /// The sum of the named fields.
    fn sum(&self, names: &[&str]) -> io::Result<u64> {
        // Some twenty-five lines of at most forty bytes, and a head; the kernel gives them whole when there is room for them.
        let mut text = [0; 4096];
        let length = rustix::io::pread(&self.memory, &mut text, 0)?;
        let text = std::str::from_utf8(&text[..length]).map_err(|_| strange())?;
        names.iter().map(|name| field(text, name).ok_or_else(strange)).sum()
    }
}

/// The value of a line like `Pss:                 612 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc/self/smaps_rollup has another form than expected")
}
