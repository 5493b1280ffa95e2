//! Which pages of a snapshot's RAM a machine that goes on from it writes to at first: nearly the same ones for each.
//!
//! A page that is the file's is copied when it is written to first, for which the guest leaves the CPU. Whoever starts many machines
//! of one snapshot has the first of them tell its pages; the others copy these, and give them to their guests, before their vCPUs run. In
//! the lab a guest wrote to 4,000 pages in 234 ms, when they were copied before in 181 ms, with that, and when it was given them as well
//! in 53 ms. The file, little-endian:
//!
//! ```text
//!   0   8  "VOIDPAGE"
//!   8   4  the version of the format
//!   12  4  how many runs follow
//!   16     the runs, 8 bytes each: the number of the first page, in the order of the RAM in the snapshot, and how many pages
//! ```
//!
//! It is a hint, and no part of the snapshot: what a machine reads or writes is the same with any such file, and without.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use vm_memory::GuestMemoryRegion as _;

use super::origin::Origin;
use super::ram::{WINDOW, pieces};
use crate::GuestMemory;
use crate::arch::x86_64 as arch;
use crate::jail::Pagemap;
use crate::memory::{Disorder, PAGE, Run, Runs, marked, pages, parts};

const MAGIC: &[u8; 8] = b"VOIDPAGE";
/// What this program writes and reads.
const VERSION: u32 = 1;
/// Of the header, in bytes.
const HEADER: usize = 16;
/// Of a run, in bytes.
const RUN: usize = 8;
/// More pages are no beginning: 256 MiB.
const MAX_PAGES: u64 = 64 << 10;

/// Why pages cannot be told, or are not copied ahead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TouchedError {
    #[error("the machine was booted: it has not gone on from a snapshot")]
    Booted,
    #[error("this host's kernel does not tell which pages a process has")]
    NoPagemap,
    #[error("asking the kernel which pages the machine has")]
    Pagemap(#[source] io::Error),
    #[error("more than {MAX_PAGES} pages are too many to be copied ahead")]
    Many,
    #[error("writing the file of touched pages")]
    Write(#[source] io::Error),
    #[error("reading the file of touched pages")]
    Read(#[source] io::Error),
    #[error("the file of touched pages is of another form")]
    Form,
    #[error("the file of touched pages is of format {0}, and this voidrun knows {VERSION}")]
    Version(u32),
    #[error("the file of touched pages makes no sense: {0}")]
    Sense(&'static str),
    #[error("the file of touched pages makes no sense: {0}")]
    Disorder(#[from] Disorder),
    #[error("copying pages, which takes Linux 5.14 or later")]
    Copy(#[source] io::Error),
    #[error("the thread that copies pages has panicked")]
    Panicked,
}

/// Pages in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched(Runs);

impl Touched {
    /// The pages of a machine's RAM that are its own, and not any more those of its origin; the first of them, where they are too many. What
    /// it has where that had none is no copy, and costs less: it is not among them.
    pub(crate) fn of(
        memory: &GuestMemory,
        pagemap: Option<&Pagemap>,
        origin: Option<&Origin>,
    ) -> Result<Self, TouchedError> {
        let origin = origin.ok_or(TouchedError::Booted)?;
        let pagemap = pagemap.ok_or(TouchedError::NoPagemap)?;
        let mut touched = Self::default();
        for (before, region) in parts(memory) {
            for window in pieces(0..region.len(), WINDOW) {
                let (address, count) =
                    (region.as_ptr() as u64 + window.start, (window.end - window.start) / PAGE);
                let mut own = pagemap.own(address, count as usize).map_err(TouchedError::Pagemap)?;
                let mut mapped = vec![false; own.len()];
                let in_ram = before + window.start..before + window.end;
                origin.mapped.mark(&in_ram, &mut mapped);
                own.iter_mut().zip(mapped).for_each(|(own, mapped)| *own &= mapped);
                for range in marked(&own) {
                    let first = (in_ram.start / PAGE) as u32 + range.start as u32;
                    let run = Run { first, count: range.len() as u32 };
                    if touched.0.pages() + u64::from(run.count) > MAX_PAGES {
                        return Ok(touched);
                    }
                    touched.add(run)?;
                }
            }
        }
        Ok(touched)
    }

    /// Adds pages behind those that there are.
    fn add(&mut self, run: Run) -> Result<(), TouchedError> {
        self.0.add(run)?;
        if self.0.pages() > MAX_PAGES { Err(TouchedError::Many) } else { Ok(()) }
    }

    /// Writes them to an empty file.
    pub(crate) fn write(&self, file: &File) -> Result<(), TouchedError> {
        let mut bytes = Vec::with_capacity(HEADER + self.0.iter().len() * RUN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.0.iter().len() as u32).to_le_bytes());
        for run in self.0.iter() {
            bytes.extend_from_slice(&run.first.to_le_bytes());
            bytes.extend_from_slice(&run.count.to_le_bytes());
        }
        file.write_all_at(&bytes, 0).map_err(TouchedError::Write)
    }

    /// Reads those of a RAM of `pages` pages from a file, from its beginning.
    fn read(file: &File, pages: u64) -> Result<Self, TouchedError> {
        // No file with a run for each page is longer.
        let most = HEADER as u64 + MAX_PAGES * RUN as u64;
        let mut bytes = Vec::new();
        Beginning { file, at: 0 }.take(most + 1).read_to_end(&mut bytes).map_err(TouchedError::Read)?;
        Self::decode(&bytes, pages)
    }

    fn decode(bytes: &[u8], pages: u64) -> Result<Self, TouchedError> {
        let (header, runs) = bytes.split_at_checked(HEADER).ok_or(TouchedError::Form)?;
        let word = |bytes: &[u8], at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if &header[..8] != MAGIC {
            return Err(TouchedError::Form);
        }
        match word(header, 8) {
            VERSION => {}
            other => return Err(TouchedError::Version(other)),
        }
        if runs.len() as u64 != u64::from(word(header, 12)) * RUN as u64 {
            return Err(TouchedError::Sense("it has another length than it says"));
        }
        let mut touched = Self::default();
        for run in runs.chunks_exact(RUN) {
            let run = Run { first: word(run, 0), count: word(run, 4) };
            if run.end() > pages {
                return Err(TouchedError::Sense("it has pages that the machine has not"));
            }
            touched.add(run)?;
        }
        Ok(touched)
    }

    /// Copies the pages. What is read from them, and what is written to them meanwhile, stays as it is.
    fn copy(&self, memory: &GuestMemory) -> Result<(), TouchedError> {
        for Place { host, len, .. } in self.places(memory) {
            loop {
                // SAFETY: by `places` the range is within a mapping of guest RAM, which is never unmapped; the advice makes the kernel
                // do what a write does, but for the writing.
                match unsafe { madvise(host.cast(), len as usize, Advice::LinuxPopulateWrite) } {
                    Ok(()) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(TouchedError::Copy(error.into())),
                }
            }
        }
        Ok(())
    }

    /// Gives the guest the pages, which were copied, before it asks for them. `vcpu` has its state, and does not run; all vCPUs have the
    /// same pages. A KVM that cannot do it does so when the guest comes to them.
    pub(crate) fn pre_fault(&self, memory: &GuestMemory, vcpu: &VcpuFd) {
        let _ = self.places(memory).try_for_each(|place| arch::pre_fault(vcpu, place.guest, place.len));
    }

    /// Where the runs are, in ascending order; one that goes on in the next region is two.
    fn places<'a>(&'a self, memory: &'a GuestMemory) -> impl Iterator<Item = Place> + 'a {
        parts(memory).flat_map(move |(before, region)| {
            self.0.within(before..before + region.len()).map(move |part| Place {
                host: region.as_ptr().wrapping_add((part.start - before) as usize),
                guest: region.start_addr().0 + (part.start - before),
                len: part.end - part.start,
            })
        })
    }
}

/// Where a run is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// In this process.
    host: *mut u8,
    /// For the guest, its physical address.
    guest: u64,
    /// In bytes.
    len: u64,
}

/// A file from its beginning, whose position, which others may have as well, stays where it is.
struct Beginning<'a> {
    file: &'a File,
    at: u64,
}

impl io::Read for Beginning<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// The thread that copies pages ahead, while the rest of the machine is built. It has no filter of the jail: it ends before the vCPUs
/// run, and before the main thread enters its own.
#[derive(Debug)]
pub(crate) struct Copying(JoinHandle<Result<Touched, TouchedError>>);

impl Copying {
    /// Copies the pages of `memory` that `file` tells.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn start(file: File, memory: &GuestMemory) -> io::Result<Self> {
        let memory = memory.clone();
        let copy = move || {
            let touched = Touched::read(&file, pages(&memory))?;
            touched.copy(&memory)?;
            Ok(touched)
        };
        std::thread::Builder::new().name("copy".to_owned()).spawn(copy).map(Self)
    }

    /// Waits for it; tells what was copied.
    ///
    /// # Errors
    /// Nothing was, or not everything.
    pub(crate) fn finish(self) -> Result<Touched, TouchedError> {
        self.0.join().unwrap_or(Err(TouchedError::Panicked))
    }
}

#[cfg(test)]
mod tests;
