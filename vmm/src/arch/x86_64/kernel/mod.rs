//! Loads a kernel into guest RAM: a `vmlinux` (ELF) or a `bzImage`.
//!
//! The file may be anything a user names: nothing in it is believed before it has been checked against the file's length and
//! the RAM, and no more is read than the RAM holds.

mod bzimage;
mod elf;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout;
use crate::GuestMemory;
use crate::memory::MemoryError;

/// A kernel that has been loaded, and what it takes to enter it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The 32-bit PVH entry, where there is one: it is the one taken. Set to `None` for the 64-bit protocol.
    pub pvh: Option<u32>,
    /// The entry of the 64-bit boot protocol.
    pub(super) entry: u64,
    /// What the zero page holds at [`SETUP_HEADER`].
    pub(super) setup_header: Vec<u8>,
    /// The first byte that the kernel leaves alone before it has read the memory map.
    pub(super) end: u64,
}

/// A file that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither of the two formats.
    #[error("the kernel is neither an ELF file nor a bzImage")]
    Format,
    /// For another CPU.
    #[error("the kernel is not for x86-64 (ELF class {class}, machine {machine})")]
    Machine {
        /// 1 for 32 bits, 2 for 64.
        class: u8,
        /// The number of the architecture (e_machine).
        machine: u16,
    },
    /// An object file, module or position-independent program.
    #[error(
        "the kernel is not an executable at fixed addresses (ELF type {0}): this may be a module, or no kernel"
    )]
    NotFixed(u16),
    /// A bzImage that cannot be entered in 64-bit mode.
    #[error("the bzImage has no 64-bit entry (boot protocol {major}.{minor})", major = .0 >> 8, minor = .0 & 0xff)]
    No64BitEntry(u16),
    /// The file contradicts itself.
    #[error("the kernel is damaged: {0}")]
    Damaged(&'static str),
    /// More RAM is needed, or it wants to be where there is none.
    #[error("the kernel does not fit: it wants {start:#x} to {end:#x}, and RAM goes from {ram_start:#x} to {ram_end:#x}",
        ram_start = layout::HIGH_RAM)]
    DoesNotFit {
        /// The first byte that is wanted.
        start: u64,
        /// The byte after the last one.
        end: u64,
        /// Where the RAM ends.
        ram_end: u64,
    },
    /// The file cannot be read.
    #[error("reading the kernel")]
    Read(#[source] io::Error),
    /// The file cannot be put into RAM.
    #[error("loading the kernel")]
    Memory(#[from] MemoryError),
}

/// The setup header's offset in a bzImage and in the zero page (Documentation/arch/x86/boot.rst).
pub(super) const SETUP_HEADER: usize = 0x1f1;
/// The longest setup header: what follows in the zero page is something else.
const SETUP_HEADER_END: usize = 0x290;
impl Kernel {
    /// Loads `file` into `memory`, which is new.
    ///
    /// # Errors
    /// The file is no kernel for this machine, is damaged, or does not fit.
    pub fn load(memory: &GuestMemory, file: &File) -> Result<Self, KernelError> {
        let size = file.metadata().map_err(KernelError::Read)?.len();
        let mut start = vec![0; size.min(SETUP_HEADER_END as u64) as usize];
        read(file, &mut start, 0)?;
        if start.starts_with(b"\x7fELF") {
            elf::load(memory, file, &start)
        } else if start.get(0x202..0x206) == Some(b"HdrS") {
            bzimage::load(memory, file, size, &start)
        } else {
            Err(KernelError::Format)
        }
    }
}

/// Where a range of RAM for the kernel ends.
fn fits(start: u64, len: u64, ram_end: u64) -> Result<u64, KernelError> {
    let end = start.saturating_add(len);
    if start < layout::HIGH_RAM || end > ram_end {
        return Err(KernelError::DoesNotFit { start, end, ram_end });
    }
    Ok(end)
}

fn read(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), KernelError> {
    // An offset that no file can have is not looked up.
    if i64::try_from(offset).is_err() {
        return Err(KernelError::Damaged("an offset is beyond the end of the file"));
    }
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => KernelError::Damaged("an offset is beyond the end of the file"),
        _ => KernelError::Read(error),
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
