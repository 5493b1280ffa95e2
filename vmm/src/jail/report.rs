//! How much the process uses, by its own account: nobody else of the same user can look any more.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use super::Pagemap;

/// Files of `/proc/self`, opened before the jail is entered. They speak of the process that has opened them: a fork inherits
/// its parent's.
#[derive(Debug)]
pub struct SelfReport {
    memory: OwnedFd,
    mappings: OwnedFd,
    descriptors: OwnedFd,
    pagemap: Option<Pagemap>,
}

impl SelfReport {
    /// Opens the files. The kernel checks who asks now, and not again when they are read.
    pub fn open() -> io::Result<Self> {
        let open =
            |path, flags| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty());
        Ok(Self {
            memory: open("/proc/self/smaps_rollup", OFlags::empty())?,
            mappings: open("/proc/self/smaps", OFlags::empty())?,
            descriptors: open("/proc/self/fd", OFlags::DIRECTORY)?,
            pagemap: Pagemap::open(),
        })
    }

    /// What [`enter_process`](super::enter_process) has to keep.
    pub fn fds(&self) -> Vec<RawFd> {
        let always = [&self.memory, &self.mappings, &self.descriptors].map(OwnedFd::as_raw_fd);
        always.into_iter().chain(self.pagemap.as_ref().map(Pagemap::fd)).collect()
    }

    /// Which pages there are, where the kernel tells.
    pub fn pagemap(&self) -> Option<&Pagemap> {
        self.pagemap.as_ref()
    }

    /// The proportional set size in KiB: a page that N processes map counts as an N-th. The kernel walks all page tables
    /// for it, guest RAM included.
    pub fn pss_kib(&self) -> io::Result<u64> {
        // Some twenty-five lines of at most forty bytes, and a head; the kernel gives them whole when there is room for them.
        let mut text = [0; 4096];
        let length = rustix::io::pread(&self.memory, &mut text, 0)?;
        let text = std::str::from_utf8(&text[..length]).map_err(|_| strange())?;
        field(text, "Pss").ok_or_else(strange)
    }

    /// KiB of pages that no other process maps, without what is mapped in `ram`: ranges of addresses in this process.
    pub fn own_kib(&self, ram: &[Range<u64>]) -> io::Result<u64> {
        rustix::fs::seek(&self.mappings, SeekFrom::Start(0))?;
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match rustix::io::read(&self.mappings, &mut piece)? {
                0 => break,
                length => text.extend_from_slice(&piece[..length]),
            }
        }
        private_outside(std::str::from_utf8(&text).map_err(|_| strange())?, ram).ok_or_else(strange)
    }

    /// How many descriptors are open, those of the report among them.
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
}

/// The value of a line like `Pss:                 612 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Sums up the private pages of the mappings in `smaps` that lie in none of `ram`.
fn private_outside(smaps: &str, ram: &[Range<u64>]) -> Option<u64> {
    let mut sum = 0;
    let mut counts = false;
    for line in smaps.lines() {
        let (name, rest) = line.split_once(' ')?;
        match name.strip_suffix(':') {
            // The head of a mapping: its first and last address.
            None => {
                let (start, end) = name.split_once('-')?;
                let start = u64::from_str_radix(start, 16).ok()?;
                let end = u64::from_str_radix(end, 16).ok()?;
                counts = !ram.iter().any(|ram| start < ram.end && ram.start < end);
            }
            Some("Private_Clean" | "Private_Dirty") if counts => {
                sum += rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
            }
            Some(_) => {}
        }
    }
    Some(sum)
}

fn strange() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's account of the process has another form than expected",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_guest_ram_out() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nPrivate_Clean:         4 kB\nPrivate_Dirty:  3 kB\nVmFlags: rd\n\
                     3000-9000 rw-p 00000000 00:00 0 [heap]\nPrivate_Clean: 0 kB\nPrivate_Dirty: 20 kB\n";
        assert_eq!(private_outside(smaps, &[]), Some(27));
        assert_eq!(private_outside(smaps, std::slice::from_ref(&(0x3000..0x4000))), Some(7));
        assert_eq!(private_outside(smaps, &[0x0..0x1000, 0x2000..0x3000]), Some(20));
        assert_eq!(private_outside("what", &[]), None);
    }
}
