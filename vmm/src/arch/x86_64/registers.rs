//! The first vCPU as it enters the kernel: its registers, and the tables in RAM that they point to.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::boot::BootError;
use super::{ArchError, layout};
use crate::GuestMemory;
use crate::memory;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// In 32-bit protected mode without paging, at an address from the kernel's notes.
    Pvh(u32),
    /// In long mode.
    Linux64(u64),
}

/// Descriptors of the 64-bit protocol (boot.rst: __BOOT_CS is 0x10, __BOOT_DS 0x18): none, none, code, data, TSS.
const GDT_64: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
/// The same for 32-bit mode (PVH: flat segments of 4 GiB, a 32-bit TSS of 0x67 bytes).
const GDT_32: [u64; 5] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 always reads as 1.
const RFLAGS: u64 = 2;

/// Points `vcpu` to `entry`.
pub(super) fn enter(memory: &GuestMemory, vcpu: &VcpuFd, entry: Entry) -> Result<(), BootError> {
    let gdt = match entry {
        Entry::Pvh(_) => GDT_32,
        Entry::Linux64(_) => GDT_64,
    };
    memory::write(memory, layout::GDT, &gdt.map(u64::to_le_bytes).concat())?;
    let mut sregs = vcpu.get_sregs().map_err(ArchError::kvm("reading system registers"))?;
    sregs.gdt = kvm_dtable { base: layout::GDT, limit: (size_of_val(&gdt) - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable { base: layout::IDT, limit: 7, ..Default::default() };
    sregs.cs = segment(gdt[2], 2);
    let data = segment(gdt[3], 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(gdt[4], 4);
    let mut regs = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match entry {
        Entry::Pvh(address) => {
            (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
            regs.rip = address.into();
            regs.rbx = layout::START_INFO;
        }
        Entry::Linux64(address) => {
            write_page_tables(memory)?;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
            (sregs.cr3, sregs.cr4, sregs.efer) = (layout::PAGE_TABLES, CR4_PAE, EFER_LME | EFER_LMA);
            regs.rip = address;
            regs.rsi = layout::ZERO_PAGE;
            (regs.rsp, regs.rbp) = (layout::STACK, layout::STACK);
        }
    }
    vcpu.set_sregs(&sregs).map_err(ArchError::kvm("setting system registers"))?;
    vcpu.set_regs(&regs).map_err(ArchError::kvm("setting registers"))?;
    Ok(())
}

/// Maps the lower 4 GiB to themselves, in pages of 2 MiB: kernel, zero page, command line and initramfs are there.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |number: u64| layout::PAGE_TABLES + number * memory::PAGE;
    let mut tables = vec![0_u64; 6 * 512];
    tables[0] = table(1) | PRESENT_WRITABLE;
    for number in 0..4 {
        tables[512 + number] = table(2 + number as u64) | PRESENT_WRITABLE;
    }
    for (number, entry) in (0..).zip(&mut tables[2 * 512..]) {
        *entry = number << 21 | PRESENT_WRITABLE | LARGE;
    }
    let bytes: Vec<u8> = tables.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory::write(memory, layout::PAGE_TABLES, &bytes)?;
    Ok(())
}

/// What a CPU loads into a segment register from the descriptor with this index (Intel SDM volume 3, section 3.4.5).
fn segment(descriptor: u64, index: u16) -> kvm_segment {
    let field = |from: u32, width: u32| descriptor >> from & ((1 << width) - 1);
    let limit = (field(0, 16) | field(48, 4) << 16) as u32;
    let granular = field(55, 1) == 1;
    kvm_segment {
        base: field(16, 24) | field(56, 8) << 24,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: field(40, 4) as u8,
        present: field(47, 1) as u8,
        dpl: field(45, 2) as u8,
        db: field(54, 1) as u8,
        s: field(44, 1) as u8,
        l: field(53, 1) as u8,
        g: u8::from(granular),
        avl: field(52, 1) as u8,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments() {
        let code = segment(GDT_64[2], 2);
        assert_eq!((code.base, code.limit, code.selector), (0, u32::MAX, 0x10));
        assert_eq!((code.type_, code.s, code.present, code.l, code.db, code.g), (0xb, 1, 1, 1, 0, 1));
        let code = segment(GDT_32[2], 2);
        assert_eq!((code.type_, code.l, code.db), (0xb, 0, 1));
        let tss = segment(GDT_32[4], 4);
        assert_eq!((tss.base, tss.limit, tss.type_, tss.s, tss.g, tss.selector), (0, 0x67, 0xb, 0, 0, 0x20));
        let odd = segment(0x12cf_f334_5678_ffff, 1);
        assert_eq!((odd.base, odd.dpl), (0x1234_5678, 3));
    }
}
