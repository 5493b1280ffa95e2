//! ACPI tables: what the machine has, for a guest that cannot look for it.
//!
//! Hardware-reduced ACPI (ACPI 6.5, section 4.1): no fixed hardware, so no PM timer, no SCI and no legacy timers. What is
//! left is vCPUs, one IOAPIC, virtio devices, the registers to switch off and to reset, and the VM generation ID.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::layout::{self, MmioSlot};
use crate::spec::Cpus;

const OEM: [u8; 6] = *b"VOIDRN";
const OEM_TABLE: [u8; 8] = *b"VOIDRUN ";
const OEM_REVISION: u32 = 1;

/// More devices than there are interrupt lines for.
#[derive(Debug, thiserror::Error)]
#[error("{devices} virtio devices are more than the {max} that a machine can have", max = { layout::VIRTIO_GSIS }.count())]
pub struct AcpiError {
    /// How many were asked for.
    pub devices: usize,
}

/// All tables of a machine, to be placed at [`layout::ACPI`]. The RSDP comes first.
///
/// # Errors
/// There are too many devices.
pub fn tables(cpus: Cpus, devices: &[MmioSlot]) -> Result<Vec<u8>, AcpiError> {
    // So they fit: with the most devices and vCPUs they have 2.5 KiB, and there is room for 128.
    if devices.len() > { layout::VIRTIO_GSIS }.count() {
        return Err(AcpiError { devices: devices.len() });
    }
    let mut tables = vec![0; Rsdp::len()];
    let dsdt = append(&mut tables, &dsdt(devices));
    let fadt = append(&mut tables, &fadt(dsdt));
    let madt = append(&mut tables, &madt(cpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut tables, &xsdt);
    tables[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM, xsdt)));
    Ok(tables)
}

/// Appends a table, aligned, and tells its guest physical address.
fn append(tables: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    let at = tables.len().next_multiple_of(16);
    tables.resize(at, 0);
    tables.extend(bytes(table));
    layout::ACPI + at as u64
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed ACPI Description Table (section 5.2.9).
fn fadt(dsdt: u64) -> impl Aml {
    // A PC without VGA, MSI and a clock in CMOS, and without ISA devices or an i8042 to look for (section 5.2.9.3).
    const BOOT_ARCH: u16 = 1 << 2 | 1 << 3 | 1 << 5;
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Both buttons are devices, of which there are none.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(layout::I8042_PORT);
    fadt.reset_value = layout::I8042_RESET;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    fadt.finalize()
}

/// Multiple APIC Description Table (section 5.2.12).
fn madt(cpus: Cpus) -> impl Aml {
    let lapic = LocalInterruptController::Address(layout::LAPIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    for id in 0..cpus.get() {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

/// Differentiated System Description Table (section 5.2.11.1).
fn dsdt(devices: &[MmioSlot]) -> impl Aml {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    for (device, slot) in devices.iter().enumerate() {
        dsdt.append_slice(&virtio(device, *slot));
    }
    dsdt.append_slice(&generation_id());
    dsdt.append_slice(&event_device());
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &Package::new(vec![&layout::S5]))));
    Table(dsdt)
}

/// [`Sdt`] is not [`Aml`] by itself.
struct Table(Sdt);

impl Aml for Table {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

/// A virtio device behind MMIO registers: the kernel's virtio_mmio knows it by `LNRO0005`.
fn virtio(number: usize, slot: MmioSlot) -> Vec<u8> {
    let name = format!("V{number:03}");
    bytes(&Scope::new(
        "_SB_".into(),
        vec![&Device::new(
            name.as_str().into(),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &number),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, slot.base as u32, layout::VIRTIO_MMIO_SIZE as u32),
                        &interrupt(slot.gsi),
                    ]),
                ),
            ],
        )],
    ))
}

/// An edge-triggered, active-high interrupt line of the device's own.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// Virtual Machine Generation ID (Microsoft's specification of 2018): where its 16 bytes are.
fn generation_id() -> Vec<u8> {
    let (low, high) = (layout::GENERATION_ID as u32, (layout::GENERATION_ID >> 32) as u32);
    bytes(&Scope::new(
        "_SB_".into(),
        vec![&Device::new(
            "VGEN".into(),
            vec![
                &Name::new("_HID".into(), &"VOID0001"),
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
            ],
        )],
    ))
}

/// Generic Event Device (section 5.6.9): an interrupt on [`layout::EVENT_GSI`] tells the driver of a new generation ID.
fn event_device() -> Vec<u8> {
    bytes(&Scope::new(
        "_SB_".into(),
        vec![&Device::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &0_u8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(layout::EVENT_GSI)])),
                &Method::new("_EVT".into(), 1, true, vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &0x80_u8)]),
            ],
        )],
    ))
}

#[cfg(test)]
mod tests;
