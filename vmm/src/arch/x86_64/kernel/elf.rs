//! A kernel as an ELF file, `vmlinux`: segments at fixed physical addresses, and a note with its PVH entry.

use std::fs::File;

use super::{Kernel, KernelError, SETUP_HEADER, fits, read, u16_at, u32_at, u64_at};
use crate::GuestMemory;
use crate::arch::x86_64::layout;
use crate::memory;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// The longest table of notes: the kernel's has about 500 bytes.
const NOTES_MAX: u64 = 64 << 10;
/// XEN_ELFNOTE_PHYS32_ENTRY: the PVH entry.
const PVH_ENTRY: u32 = 18;

/// Loads `file`, which begins with `header`.
pub(super) fn load(memory: &GuestMemory, file: &File, header: &[u8]) -> Result<Kernel, KernelError> {
    if header.len() < 64 {
        return Err(KernelError::Damaged("the ELF header is cut off"));
    }
    let (class, machine) = (header[4], u16_at(header, 18));
    // Class 64, little endian, EM_X86_64.
    if (class, header[5], machine) != (2, 1, 62) {
        return Err(KernelError::Machine { class, machine });
    }
    // ET_EXEC.
    if u16_at(header, 16) != 2 {
        return Err(KernelError::NotFixed(u16_at(header, 16)));
    }
    let (entry, table, count) = (u64_at(header, 24), u64_at(header, 32), u16_at(header, 56));
    if u16_at(header, 54) != 56 || count == 0 || count > 64 {
        return Err(KernelError::Damaged("the table of program headers"));
    }
    let mut table_bytes = vec![0; usize::from(count) * 56];
    read(file, &mut table_bytes, table)?;

    let mut kernel = Kernel { pvh: None, entry, setup_header: setup_header(), end: layout::HIGH_RAM };
    let ram_end = memory::low_end(memory);
    let (mut loaded, mut entry_is_loaded, mut notes) = (0_u64, false, None);
    for segment in table_bytes.chunks_exact(56) {
        let (offset, start) = (u64_at(segment, 8), u64_at(segment, 24));
        let (in_file, in_memory) = (u64_at(segment, 32), u64_at(segment, 40));
        match u32_at(segment, 0) {
            PT_NOTE => notes = Some((offset, in_file)),
            PT_LOAD => {
                if in_file > in_memory {
                    return Err(KernelError::Damaged("a segment is longer in the file than in memory"));
                }
                let end = fits(start, in_memory, ram_end)?;
                loaded += in_memory;
                if loaded > ram_end {
                    return Err(KernelError::Damaged("its segments overlap"));
                }
                memory::read_file(memory, start, file, offset, in_file)?;
                kernel.end = kernel.end.max(end);
                entry_is_loaded |= (start..end).contains(&entry);
            }
            _ => {}
        }
    }
    if !entry_is_loaded {
        return Err(KernelError::Damaged("the entry is in none of its segments"));
    }
    if let Some((offset, len)) = notes {
        kernel.pvh = pvh_entry(file, offset, len)?;
    }
    if kernel.pvh.is_some_and(|pvh| !(layout::HIGH_RAM..kernel.end).contains(&pvh.into())) {
        return Err(KernelError::Damaged("the PVH entry is outside of it"));
    }
    Ok(kernel)
}

/// The address in a note of the PVH entry, if there is one.
fn pvh_entry(file: &File, offset: u64, len: u64) -> Result<Option<u32>, KernelError> {
    const BROKEN: KernelError = KernelError::Damaged("the notes");
    if len > NOTES_MAX {
        return Err(BROKEN);
    }
    let mut notes = vec![0; len as usize];
    read(file, &mut notes, offset)?;
    let mut rest = notes.as_slice();
    while rest.len() >= 12 {
        let (name_len, desc_len) = (u32_at(rest, 0) as usize, u32_at(rest, 4) as usize);
        let desc = 12 + name_len.next_multiple_of(4);
        let next = desc + desc_len.next_multiple_of(4);
        // The last note need not be padded.
        if desc + desc_len > rest.len() {
            return Err(BROKEN);
        }
        if u32_at(rest, 8) == PVH_ENTRY && rest[12..].starts_with(b"Xen\0") && name_len == 4 {
            return if desc_len >= 4 { Ok(Some(u32_at(rest, desc))) } else { Err(BROKEN) };
        }
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(None)
}

/// An ELF file has no setup header: this is what a boot loader says in it.
fn setup_header() -> Vec<u8> {
    let mut header = vec![0; 0x238 + 4 - SETUP_HEADER];
    let mut put = |at: usize, bytes: &[u8]| header[at - SETUP_HEADER..][..bytes.len()].copy_from_slice(bytes);
    put(0x1fe, &0xaa55_u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x020c_u16.to_le_bytes());
    header
}
