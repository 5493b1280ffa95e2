//! Guest RAM: private memory, anonymous and filled from files, or in part a file's until it is written to.

mod mapped;
mod runs;

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect,
    mremap_fixed, munmap,
};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionCollectionError, GuestRegionMmap,
};

use crate::GuestMemory;
use crate::arch::x86_64::layout;
use crate::spec::MemoryMib;
use crate::vectored::read_exact_at;

pub use mapped::Mapped;
pub use runs::{Disorder, Runs};
pub(crate) use runs::{Run, marked};

/// The size of a page.
pub const PAGE: u64 = 4096;
/// The size of a huge page. RAM begins at a multiple of it in the host too, so that a huge page of the host can be one of
/// the guest's; it is also the size of the gap that no access crosses unpunished.
const HUGE: usize = 2 << 20;

/// Guest RAM could not be had or filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has not enough memory or address space, or a limit is in the way.
    #[error("allocating {mib} MiB of guest RAM")]
    Allocate {
        /// How much was asked for.
        mib: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The parts of the RAM do not fit together.
    #[error("making {mib} MiB of guest RAM")]
    Regions {
        /// How much was asked for.
        mib: u32,
        /// Why.
        #[source]
        source: GuestRegionCollectionError,
    },
    /// A part of the RAM is not sound.
    #[error("making {mib} MiB of guest RAM")]
    Region {
        /// How much was asked for.
        mib: u32,
        /// Why.
        #[source]
        source: MmapRegionError,
    },
    /// Something does not fit into the RAM.
    #[error("{len} bytes at {address:#x} are not within the guest's RAM")]
    OutOfRange {
        /// The guest physical address.
        address: u64,
        /// How many bytes.
        len: u64,
    },
    /// The file is shorter than what it should hold.
    #[error("the file ends before byte {end}")]
    FileTooShort {
        /// Where the wanted part of the file ends.
        end: u64,
    },
    /// The host cannot read the file.
    #[error("{what} the file")]
    File {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A write to guest RAM.
    #[error("writing {len} bytes to guest RAM at {address:#x}")]
    Write {
        /// The guest physical address.
        address: u64,
        /// How many bytes.
        len: usize,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Allocates `size` of guest RAM, in one or two parts around the hole below 4 GiB.
///
/// Pages are the host's only once they are touched, huge pages where it has them; a core dump leaves them out; before, between
/// and after the parts are at least 2 MiB that nothing can access. The RAM is never unmapped: it lives as long as the
/// process, in which there is one machine.
///
/// # Errors
/// The host has not enough memory or address space.
pub fn allocate(size: MemoryMib) -> Result<GuestMemory, MemoryError> {
    // SAFETY: by `place` the range is its caller's alone.
    place(size, |start, len, _| unsafe { make_anonymous(start, len) })
}

/// Pages of RAM in a file.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Open for reading.
    pub file: &'a File,
    /// Where those of the first run are, in bytes; those of the next are behind them.
    pub offset: u64,
    /// Which they are in the RAM.
    pub runs: &'a Runs,
}

/// The same with pages of files, of which a later one's are before an earlier one's: each is the file's until it is written to, and the
/// file stays as it is. It must not become shorter for as long as the process lives. All other pages are zero.
///
/// # Errors
/// As of [`allocate`], or a file cannot be mapped.
pub fn map(size: MemoryMib, files: &[Pages<'_>]) -> Result<GuestMemory, MemoryError> {
    place(size, |start, len, before| {
        // SAFETY: by `place` the range is its caller's alone.
        unsafe { make_anonymous(start, len) }?;
        for &Pages { file, offset, runs } in files {
            for (part, packed) in runs.packed(before..before + len as u64) {
                let at = start.wrapping_byte_add((part.start - before) as usize);
                let (access, flags) =
                    (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
                let len = (part.end - part.start) as usize;
                // SAFETY: as above; what is replaced is within the range.
                unsafe { mmap(at, len, access, flags | MapFlags::FIXED, file, offset + packed) }?;
            }
        }
        Ok(())
    })
}

/// Makes a reserved range accessible.
///
/// # Safety
/// Nothing else refers to it.
unsafe fn make_anonymous(start: *mut c_void, len: usize) -> rustix::io::Result<()> {
    // SAFETY: by the caller.
    unsafe { mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE) }?;
    // A kernel without huge pages refuses this, and does without.
    // SAFETY: by the caller; the advice does not change what is read.
    let _ = unsafe { madvise(start, len, Advice::LinuxHugepage) };
    Ok(())
}

/// Reserves a range for each part of the RAM, has `fill` make it accessible, by where it is, its length and how much is in the parts
/// before it, and puts the parts together.
fn place(
    size: MemoryMib,
    fill: impl Fn(*mut c_void, usize, u64) -> rustix::io::Result<()>,
) -> Result<GuestMemory, MemoryError> {
    let mib = u32::from(size);
    let failed = |error: rustix::io::Errno| MemoryError::Allocate { mib, source: error.into() };
    let ranges = layout::ram(size.bytes());
    let padded = |len: u64| (len as usize).next_multiple_of(HUGE) + HUGE;
    let total = ranges.iter().map(|(_, len)| padded(*len)).sum::<usize>() + 2 * HUGE;
    // SAFETY: the kernel chooses where; nothing that exists is replaced.
    let reserved = unsafe {
        mmap_anonymous(ptr::null_mut(), total, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
    }
    .map_err(failed)?;
    let mut at = HUGE + reserved.align_offset(HUGE);
    let mut before = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for (address, len) in ranges {
        let start = reserved.wrapping_byte_add(at);
        at += padded(len);
        // `start` and `len` are within what was reserved above (2 MiB of it are for the alignment), which nothing else refers to.
        fill(start, len as usize, before).map_err(failed)?;
        before += len;
        let len = len as usize;
        // A kernel without core dumps refuses this.
        // SAFETY: as above; the advice does not change what is read.
        let _ = unsafe { madvise(start, len, Advice::LinuxDontDump) };
        let region = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_ANONYMOUS);
        // SAFETY: the mapping has just been made, and is never unmapped.
        let region = unsafe { region.with_raw_mmap_pointer(start.cast()) }
            .build()
            .map_err(|source| MemoryError::Region { mib, source })?;
        regions.extend(GuestRegionMmap::new(region, GuestAddress(address)));
    }
    let memory =
        GuestMemoryMmap::from_regions(regions).map_err(|source| MemoryError::Regions { mib, source })?;
    Ok(Arc::new(memory))
}

/// The memory slots of `memory`, for KVM.
pub fn slots(memory: &GuestMemory) -> impl Iterator<Item = kvm_userspace_memory_region> {
    memory.iter().zip(0..).map(|(region, slot)| kvm_userspace_memory_region {
        slot,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        flags: 0,
    })
}

/// The parts of the RAM, each with how many bytes are in those before it: where its pages are in [`Runs`].
pub fn parts(memory: &GuestMemory) -> impl Iterator<Item = (u64, &GuestRegionMmap)> {
    memory.iter().scan(0, |before, region| {
        let start = *before;
        *before += region.len();
        Some((start, region))
    })
}

/// How many pages the RAM has.
pub fn pages(memory: &GuestMemory) -> u64 {
    memory.iter().map(|region| region.len() / PAGE).sum()
}

/// Where the RAM below the hole ends.
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, vm_memory::GuestMemoryRegion::len)
}

/// Gives back to the host the memory of `len` bytes at `address`: they read as zeros until the guest writes to them again, also where
/// a file was `mapped`. Only of huge pages that are within them as a whole, and within one part of the RAM: Linux reports no smaller ones,
/// and pieces at the guest's pleasure would use up the mappings that the process may have. The rest stays as it is.
///
/// # Errors
/// The host's kernel refuses: what is left stays as it is.
pub fn give_back(memory: &GuestMemory, address: u64, len: u64, mapped: Option<&Mapped>) -> io::Result<()> {
    let huge = HUGE as u64;
    let start = address.div_ceil(huge).saturating_mul(huge);
    let len = (address.saturating_add(len) / huge * huge).saturating_sub(start);
    if len == 0 {
        return Ok(());
    }
    let Some((before, region)) = parts(memory).find(|(_, region)| region.last_addr().0 >= start) else {
        return Ok(());
    };
    let Ok(place) = memory.get_slice(GuestAddress(start), len as usize) else { return Ok(()) };
    let first = place.ptr_guard_mut().as_ptr();
    let in_ram = before + (start - region.start_addr().0);
    let Some(mapped) = mapped else { return discard(first.cast(), place.len()) };
    for offset in (0..place.len()).step_by(HUGE) {
        let (at, start) = (in_ram + offset as u64, first.wrapping_add(offset).cast());
        if mapped.has_file(at) {
            replace(start, HUGE)?;
            mapped.replace(at);
        } else {
            discard(start, HUGE)?;
        }
    }
    Ok(())
}

/// Takes the pages of anonymous guest RAM away. A tenth of what it costs to [`replace`] them where nothing was touched, and no mapping
/// more.
fn discard(start: *mut c_void, len: usize) -> io::Result<()> {
    // SAFETY: the range is guest RAM, and what it holds is the guest's alone.
    Ok(unsafe { madvise(start, len, Advice::LinuxDontNeed) }?)
}

/// Puts new anonymous memory in the place of `len` bytes of guest RAM at `start`.
fn replace(start: *mut c_void, len: usize) -> rustix::io::Result<()> {
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // Made elsewhere and moved there at once. A mapping that is made in its place would, where the kernel is older than 6.12, take the old
    // one away before it is known to succeed, and what this process maps next could come to lie in the hole.
    // SAFETY: the kernel chooses where; nothing that exists is replaced.
    let new = unsafe { mmap_anonymous(ptr::null_mut(), len, access, flags) }?;
    for advice in [Advice::LinuxHugepage, Advice::LinuxDontDump] {
        // A kernel that has neither refuses it.
        // SAFETY: nothing else refers to the range; the advice does not change what is read.
        let _ = unsafe { madvise(new, len, advice) };
    }
    // SAFETY: `new` is referred to by nothing else; `start` is guest RAM, and what it holds is the guest's alone.
    let moved = unsafe { mremap_fixed(new, len, len, MremapFlags::MAYMOVE, start) };
    if moved.is_err() {
        // SAFETY: the advice does not change what is read. It fails so where something is not mapped.
        if unsafe { madvise(start, len, Advice::LinuxDontDump) } == Err(Errno::NOMEM) {
            std::process::abort();
        }
        // SAFETY: as above.
        let _ = unsafe { munmap(new, len) };
    }
    moved.map(drop)
}

/// Reads `len` bytes of `file`, from `offset`, into guest RAM at `address`. Leaves the file's position alone: the open file
/// may be shared with another machine that is just being made.
///
/// A kernel is not mapped either, which would share the page cache between machines: it patches nearly every page of its
/// text as it boots, so that little is shared for long, and each page costs two faults where a huge page costs one.
/// In the lab a boot took 1.3 times as long with a mapped kernel.
///
/// # Errors
/// The file is too short, or does not fit.
pub fn read_file(
    memory: &GuestMemory,
    address: u64,
    file: &File,
    offset: u64,
    len: u64,
) -> Result<(), MemoryError> {
    let failed = |what| move |source| MemoryError::File { what, source };
    let size = file.metadata().map_err(failed("examining"))?.len();
    let end = offset.saturating_add(len);
    if end > size {
        return Err(MemoryError::FileTooShort { end });
    }
    let slice = memory
        .get_slice(GuestAddress(address), len as usize)
        .map_err(|_| MemoryError::OutOfRange { address, len })?;
    read_exact_at(file, &[slice], offset).map_err(failed("reading"))
}

/// Writes `bytes` to guest RAM at `address`.
///
/// # Errors
/// They do not fit.
pub fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
    let len = bytes.len();
    memory.write_slice(bytes, GuestAddress(address)).map_err(|source| MemoryError::Write {
        address,
        len,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn machine(mib: u32) -> GuestMemory {
        allocate(MemoryMib::try_from(mib).unwrap()).unwrap()
    }

    #[test]
    fn aligned_parts_around_the_hole() {
        let memory = machine(3 * 1024 + 130);
        let slots: Vec<_> = slots(&memory).collect();
        assert_eq!(
            slots.iter().map(|s| (s.guest_phys_addr, s.memory_size)).collect::<Vec<_>>(),
            [(0, 3 << 30), (4 << 30, 130 << 20)]
        );
        assert!(slots.iter().all(|s| s.userspace_addr % (2 << 20) == 0));
        assert!(slots[1].userspace_addr - slots[0].userspace_addr >= (3 << 30) + (2 << 20));
        write(&memory, (4 << 30) + (130 << 20) - 4, b"last").unwrap();
        assert!(write(&memory, (3 << 30) - 2, b"hole").is_err());
        assert_eq!(low_end(&memory), 3 << 30);
    }

    #[test]
    fn guarded() {
        let memory = machine(128);
        let start = memory.get_host_address(GuestAddress(0)).unwrap();
        let (_read, written) = rustix::pipe::pipe().unwrap();
        let write = |from: *const u8| {
            // SAFETY: the kernel reads this one byte, or answers EFAULT.
            unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&written), from.cast(), 1) }
        };
        assert_eq!(write(start), 1);
        assert_eq!(write(start.wrapping_sub(1)), -1);
        assert_eq!(write(start.wrapping_add((128 << 20) - 1)), 1);
        assert_eq!(write(start.wrapping_add(128 << 20)), -1);
    }

    #[test]
    fn what_is_given_back_reads_as_zeros() {
        const MIB: u64 = 1 << 20;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 16 << 20]).unwrap();
        let mib = MemoryMib::try_from(128).unwrap();
        let pagemap = crate::jail::Pagemap::open().unwrap();
        // The file's are the first 15 MiB, and the last one.
        let runs = Runs::try_from(vec![(0, 15 << 8), (127 << 8, 256)]).unwrap();
        let restored = map(mib, &[Pages { file: &file, offset: 0, runs: &runs }]).unwrap();
        let mapped = Mapped::new(runs, Runs::default(), 128 * MIB);
        for (memory, mapped) in [(allocate(mib).unwrap(), None), (restored, Some(&mapped))] {
            let holds = |at: u64, end: u64| {
                let mut bytes = vec![1; ((end - at) * MIB) as usize];
                memory.read_slice(&mut bytes, GuestAddress(at * MIB)).unwrap();
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "from {at} to {end} MiB");
                bytes[0]
            };
            write(&memory, 4 * MIB, &vec![9; 8 << 20]).unwrap();
            for _ in 0..2 {
                give_back(&memory, 6 * MIB - 1, 4 * MIB + 2, mapped).unwrap();
                let own = pagemap.own(memory.get_host_address(GuestAddress(4 * MIB)).unwrap() as u64, 2048);
                let own = own.unwrap();
                assert!(own[..512].iter().all(|own| *own) && own[1536..].iter().all(|own| *own));
                assert!(!own[512..1536].contains(&true), "they are this process's yet");
                assert_eq!([holds(4, 6), holds(6, 10), holds(10, 12)], [9, 0, 9]);
                write(&memory, 6 * MIB, &vec![8; 4 << 20]).unwrap();
                assert_eq!([holds(4, 6), holds(6, 10), holds(10, 12)], [9, 8, 9]);
            }
            // In part a file's, and all of the RAM.
            give_back(&memory, 14 * MIB, 2 * MIB, mapped).unwrap();
            assert_eq!(holds(14, 16), 0);
            give_back(&memory, 0, 128 * MIB, mapped).unwrap();
            assert_eq!(holds(0, 128), 0);
        }
        let mut content = vec![0; 16 << 20];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 0).unwrap();
        assert!(content.iter().all(|byte| *byte == 7), "the file has changed");
    }

    #[test]
    fn files_are_read() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..3 * 4096 + 100).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let memory = machine(128);
        for (address, offset) in [(0x10_0000, 0), (0x20_0000, 4096), (0x30_0010, 0), (0x40_0000, 1)] {
            let expected = &content[offset as usize..];
            read_file(&memory, address, &file, offset, expected.len() as u64).unwrap();
            let mut found = vec![1; expected.len() + 1];
            memory.read_slice(&mut found, GuestAddress(address)).unwrap();
            assert_eq!(&found[..expected.len()], expected);
            assert_eq!(found[expected.len()], 0, "nothing of the file beyond what was asked for");
        }
        let size = content.len() as u64;
        let short = read_file(&memory, 0x10_0000, &file, 4096, size);
        assert!(matches!(short, Err(MemoryError::FileTooShort { end }) if end == size + 4096));
        let outside = read_file(&memory, (128 << 20) - 4096, &file, 0, size);
        assert!(matches!(outside, Err(MemoryError::OutOfRange { .. })));
    }
}
