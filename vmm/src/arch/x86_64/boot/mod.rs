//! What the kernel finds in RAM, and how it is entered: by PVH where it can be, else by the 64-bit boot protocol.

use std::fs::File;
use std::io;

use kvm_ioctls::VcpuFd;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::ArchError;
use super::acpi::{self, AcpiError};
use super::kernel::{Kernel, SETUP_HEADER};
use super::layout::{self, MmioSlot};
use super::registers::{self, Entry};
use crate::GuestMemory;
use crate::memory::{self, MemoryError, PAGE};
use crate::spec::Cpus;

/// The guest cannot be prepared for its first instruction.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel would cut the command line off.
    #[error("the kernel's command line has {len} bytes, and at most {max} fit", max = layout::CMDLINE_SIZE - 1)]
    CmdlineTooLong {
        /// How long it is.
        len: usize,
    },
    /// The kernel would take it for the end.
    #[error("the kernel's command line has a NUL character in it")]
    CmdlineNul,
    /// The initramfs and the kernel do not fit side by side.
    #[error("the initramfs has {len} bytes, and {room} are left between the kernel and the end of low RAM")]
    InitramfsTooLarge {
        /// How long it is.
        len: u64,
        /// How much room there is.
        room: u64,
    },
    /// The initramfs cannot be examined.
    #[error("examining the initramfs")]
    Initramfs(#[source] io::Error),
    /// The host has no random numbers to give.
    #[error("making a generation ID")]
    Random(#[source] io::Error),
    /// There are too many devices.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Guest RAM cannot be filled.
    #[error("filling guest RAM")]
    Memory(#[from] MemoryError),
    /// KVM refuses the registers.
    #[error(transparent)]
    Arch(#[from] ArchError),
}

/// Prepares RAM and the first vCPU for the first instruction of `kernel`. Other vCPUs wait to be started by the guest (INIT, SIPI),
/// as KVM makes them.
///
/// # Errors
/// The command line or the initramfs is too long, there are too many devices, or KVM refuses the registers.
pub fn prepare(
    memory: &GuestMemory,
    vcpu: &VcpuFd,
    kernel: &Kernel,
    cmdline: &str,
    initramfs: Option<&File>,
    devices: &[MmioSlot],
    cpus: Cpus,
) -> Result<(), BootError> {
    write_cmdline(memory, cmdline)?;
    let initramfs = initramfs.map(|file| place_initramfs(memory, kernel, file)).transpose()?;
    memory::write(memory, layout::ACPI, &acpi::tables(cpus, devices)?)?;
    renew_generation_id(memory)?;
    let entry = if let Some(address) = kernel.pvh {
        write_start_info(memory, initramfs)?;
        Entry::Pvh(address)
    } else {
        let page = zero_page(&kernel.setup_header, cmdline, initramfs, &memory_map(memory));
        memory::write(memory, layout::ZERO_PAGE, &page)?;
        Entry::Linux64(kernel.entry)
    };
    registers::enter(memory, vcpu, entry)
}

/// Gives the machine a new VM generation ID: it is a copy of another from now on. Call it before the vCPUs go on, and
/// [`Vm::announce_generation_id`](super::Vm::announce_generation_id) to make the guest look.
///
/// # Errors
/// The host has no random numbers.
pub fn renew_generation_id(memory: &GuestMemory) -> Result<(), BootError> {
    let mut id = [0; 16];
    // Up to 256 bytes are given whole (random(7)).
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| BootError::Random(e.into()))?;
    Ok(memory::write(memory, layout::GENERATION_ID, &id)?)
}

/// A range of the guest's physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// What the guest is told of its RAM. The numbers of [`Kind`] are those of E820 and of PVH.
fn memory_map(memory: &GuestMemory) -> Vec<(Range, Kind)> {
    let mut map = Vec::with_capacity(4);
    for region in memory.iter() {
        let (start, len) = (region.start_addr().0, region.len());
        if start > 0 {
            map.push((Range { start, len }, Kind::Ram));
            continue;
        }
        let reserved = Range { start: layout::RESERVED, len: layout::HIGH_RAM - layout::RESERVED };
        map.push((Range { start: 0, len: layout::RESERVED }, Kind::Ram));
        map.push((reserved, Kind::Reserved));
        map.push((Range { start: layout::HIGH_RAM, len: len - layout::HIGH_RAM }, Kind::Ram));
    }
    map
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    let len = cmdline.len();
    if len >= layout::CMDLINE_SIZE {
        return Err(BootError::CmdlineTooLong { len });
    }
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineNul);
    }
    // New RAM is zero: the NUL is there.
    memory::write(memory, layout::CMDLINE, cmdline.as_bytes())?;
    Ok(())
}

/// Puts the initramfs at the end of low RAM, where the kernel does not unpack to.
fn place_initramfs(memory: &GuestMemory, kernel: &Kernel, file: &File) -> Result<Range, BootError> {
    let len = file.metadata().map_err(BootError::Initramfs)?.len();
    let room = (memory::low_end(memory) - kernel.end) / PAGE * PAGE;
    if len > room {
        return Err(BootError::InitramfsTooLarge { len, room });
    }
    let start = (memory::low_end(memory) - len) / PAGE * PAGE;
    memory::read_file(memory, start, file, 0, len)?;
    Ok(Range { start, len })
}

/// The PVH protocol (Xen, docs/misc/pvh.pandoc): start_info, the list of modules, the memory map.
fn write_start_info(memory: &GuestMemory, initramfs: Option<Range>) -> Result<(), BootError> {
    let map = memory_map(memory);
    let mut info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(Range { start, len }) = initramfs {
        (info.nr_modules, info.modlist_paddr) = (1, layout::MODULE_LIST);
        let module = hvm_modlist_entry { paddr: start, size: len, ..Default::default() };
        memory::write(memory, layout::MODULE_LIST, module.as_slice())?;
    }
    let entries = map.iter().map(|(range, kind)| hvm_memmap_table_entry {
        addr: range.start,
        size: range.len,
        type_: *kind as u32,
        reserved: 0,
    });
    let entries: Vec<u8> = entries.flat_map(|entry| entry.as_slice().to_vec()).collect();
    memory::write(memory, layout::MEMORY_MAP, &entries)?;
    memory::write(memory, layout::START_INFO, info.as_slice())?;
    Ok(())
}

/// The 64-bit boot protocol (Documentation/arch/x86/{boot,zero-page}.rst): what a boot loader fills in.
fn zero_page(setup_header: &[u8], cmdline: &str, initramfs: Option<Range>, map: &[(Range, Kind)]) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_HEADER, setup_header);
    put(0x070, &layout::ACPI.to_le_bytes()); // acpi_rsdp_addr
    put(0x1e8, &[map.len() as u8]); // e820_entries
    put(0x210, &[0xff]); // type_of_loader: undefined
    put(0x228, &(layout::CMDLINE as u32).to_le_bytes()); // cmd_line_ptr
    put(0x238, &(cmdline.len() as u32).to_le_bytes()); // cmdline_size
    if let Some(Range { start, len }) = initramfs {
        put(0x218, &(start as u32).to_le_bytes()); // ramdisk_image: below 3 GiB
        put(0x21c, &(len as u32).to_le_bytes()); // ramdisk_size
    }
    for (number, (range, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + number * 20; // e820_table
        put(at, &range.start.to_le_bytes());
        put(at + 8, &range.len.to_le_bytes());
        put(at + 16, &(*kind as u32).to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests;
