//! Where things are in the guest's physical address space, in bytes.
//!
//! ```text
//!   0x0000_0500  GDT, IDT                      read once, at the first instruction
//!   0x0000_6000  PVH start_info, module list
//!   0x0000_7000  PVH memory map, or the zero page of the 64-bit protocol
//!   0x0000_9000  page tables of the 64-bit protocol
//!   0x0002_0000  command line
//!   0x0009_f000  reserved from here on: the VM generation ID
//!   0x000e_0000  ACPI tables
//!   0x0010_0000  RAM: the kernel; at the top of what is below 3 GiB the initramfs
//!   0xc000_0000  no RAM: virtio-mmio at 0xd000_0000, IOAPIC, LAPIC, KVM's own pages
//!   0x1_0000_0000  the rest of the RAM
//! ```

use std::ops::RangeInclusive;

/// Segment descriptors.
pub const GDT: u64 = 0x500;
/// Interrupt descriptors: none, the kernel brings its own.
pub const IDT: u64 = 0x520 + 8;
/// `hvm_start_info` of the PVH protocol.
pub const START_INFO: u64 = 0x6000;
/// Its one module, the initramfs.
pub const MODULE_LIST: u64 = 0x6040;
/// Its memory map.
pub const MEMORY_MAP: u64 = 0x7000;
/// `boot_params` of the 64-bit protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// The first stack: grows down to the zero page.
pub const STACK: u64 = 0x8ff0;
/// Page tables: one level 4, one level 3, four of level 2.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// COMMAND_LINE_SIZE of the kernel on x86, with the NUL.
pub const CMDLINE_SIZE: usize = 2048;
/// RAM below 1 MiB ends here.
pub const RESERVED: u64 = 0x9_f000;
/// 16 bytes that change when a machine is restored or forked (Virtual Machine Generation ID, section 2).
pub const GENERATION_ID: u64 = RESERVED;
/// ACPI tables; the RSDP comes first.
pub const ACPI: u64 = 0xe_0000;
/// The end of the ACPI tables, and of what is reserved.
pub const ACPI_END: u64 = 0x10_0000;
/// The lowest address of a kernel.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The first byte that is never RAM.
pub const HOLE: u64 = 3 << 30;
/// The first byte after the hole.
pub const HOLE_END: u64 = 4 << 30;
/// The registers of the first virtio device.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// The size of a virtio device's registers.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The interrupt lines of virtio devices, one each. Those below belong to the ISA devices that a PC has.
pub const VIRTIO_GSIS: RangeInclusive<u32> = 5..=23;
/// The interrupt line of the ACPI event device: a new VM generation ID.
pub const EVENT_GSI: u32 = 4;
/// The registers of the IOAPIC, in KVM.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The registers of a vCPU's LAPIC, in KVM.
pub const LAPIC: u32 = 0xfee0_0000;
/// A page table of KVM's own, on Intel CPUs that cannot run real mode.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages of KVM's own, on the same CPUs.
pub const TSS: u64 = 0xfffb_d000;

/// Port: the early serial console of a 16550, eight registers.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Port: the i8042's commands. Status is read here as well, and must be 0 (no data, ready).
pub const I8042_PORT: u16 = 0x64;
/// Written to [`I8042_PORT`]: resets the machine.
pub const I8042_RESET: u8 = 0xfe;
/// Port: the sleep control register (ACPI 6.5, section 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Port: the sleep status register. Reads as 0.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The sleep type of S5, "soft off".
pub const S5: u8 = 5;
/// Written to [`SLEEP_CONTROL_PORT`]: switches the machine off (SLP_TYP in bits 2 to 4, SLP_EN in bit 5).
pub const POWER_OFF: u8 = S5 << 2 | 1 << 5;

/// The place of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// The guest physical address of its [`VIRTIO_MMIO_SIZE`] bytes of registers.
    pub base: u64,
    /// Its interrupt line, edge-triggered.
    pub gsi: u32,
}

impl MmioSlot {
    /// The place of the device with this number, counted from 0; `None` when there are no more interrupt lines.
    pub fn nth(device: usize) -> Option<Self> {
        let gsi = { VIRTIO_GSIS }.nth(device)?;
        Some(Self { base: VIRTIO_MMIO + device as u64 * VIRTIO_MMIO_SIZE, gsi })
    }
}

/// The ranges of RAM of a machine that has `bytes` of it, as (address, length).
pub fn ram(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HOLE_END, bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram(HOLE), [(0, HOLE)]);
        assert_eq!(ram(HOLE + (1 << 20)), [(0, HOLE), (HOLE_END, 1 << 20)]);
        assert_eq!(ram(8 << 30), [(0, HOLE), (HOLE_END, 5 << 30)]);
    }

    #[test]
    fn nineteen_devices() {
        assert_eq!(MmioSlot::nth(0), Some(MmioSlot { base: 0xd000_0000, gsi: 5 }));
        assert_eq!(MmioSlot::nth(18), Some(MmioSlot { base: 0xd001_2000, gsi: 23 }));
        assert_eq!(MmioSlot::nth(19), None);
    }
}
