//! A kernel as a `bzImage`, which unpacks itself (Documentation/arch/x86/boot.rst).

use std::fs::File;

use super::{Kernel, KernelError, SETUP_HEADER, SETUP_HEADER_END, fits, u16_at, u32_at, u64_at};
use crate::GuestMemory;
use crate::arch::x86_64::layout;
use crate::memory;

/// The offset of the 64-bit entry in the protected-mode code.
const ENTRY_64: u64 = 0x200;

/// Loads `file` of `size` bytes, which begins with `start`.
pub(super) fn load(
    memory: &GuestMemory,
    file: &File,
    size: u64,
    start: &[u8],
) -> Result<Kernel, KernelError> {
    const CUT_OFF: KernelError = KernelError::Damaged("the setup header is cut off");
    // Up to init_size.
    if start.len() < 0x264 {
        return Err(CUT_OFF);
    }
    let version = u16_at(start, 0x206);
    // The header's length is that of the jump over it (boot.rst, "The Real-Mode Kernel Header").
    let end = 0x202 + usize::from(start[0x201]);
    let header = start.get(SETUP_HEADER..end.min(SETUP_HEADER_END)).ok_or(CUT_OFF)?.to_vec();
    // 2.12 brought xloadflags, of which bit 0 promises the 64-bit entry; LOADED_HIGH is bit 0 of loadflags.
    if version < 0x020c || start[0x211] & 1 == 0 {
        return Err(KernelError::No64BitEntry(version));
    }
    if end < 0x264 {
        return Err(CUT_OFF);
    }
    if u16_at(start, 0x236) & 1 == 0 {
        return Err(KernelError::No64BitEntry(version));
    }
    let setup = (u64::from(if start[SETUP_HEADER] == 0 { 4 } else { start[SETUP_HEADER] }) + 1) * 512;
    let len = size.checked_sub(setup).filter(|len| *len > ENTRY_64);
    let len = len.ok_or(KernelError::Damaged("it ends before the protected-mode code"))?;
    let ram_end = memory::low_end(memory);
    let compressed_end = fits(layout::HIGH_RAM, len, ram_end)?;
    // It unpacks itself to its preferred address, or to where it is when that is higher, and needs init_size bytes there.
    let (preferred, needed) = (u64_at(start, 0x258), u64::from(u32_at(start, 0x260)));
    let end = fits(preferred.max(layout::HIGH_RAM), needed, ram_end)?.max(compressed_end);
    memory::read_file(memory, layout::HIGH_RAM, file, setup, len)?;
    Ok(Kernel { pvh: None, entry: layout::HIGH_RAM + ENTRY_64, setup_header: header, end })
}
