use std::path::Path as FilePath;
use std::process::Command;

use super::*;

fn all(cpus: u8, devices: usize) -> Vec<u8> {
    let devices: Vec<_> = (0..devices).filter_map(MmioSlot::nth).collect();
    tables(Cpus::try_from(cpus).unwrap(), &devices).unwrap()
}

fn address(tables: &[u8], at: usize) -> usize {
    let address = u64::from_le_bytes(tables[at..at + 8].try_into().unwrap());
    (address - layout::ACPI) as usize
}

/// The table at `at`, whose checksum and signature hold.
fn table<'a>(tables: &'a [u8], at: usize, signature: &str) -> &'a [u8] {
    assert_eq!(at % 16, 0);
    let len = u32::from_le_bytes(tables[at + 4..at + 8].try_into().unwrap()) as usize;
    let table = &tables[at..at + len];
    assert_eq!(&table[..4], signature.as_bytes());
    assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum of {signature}");
    table
}

/// DSDT, FADT and MADT, found as a guest finds them.
fn found(tables: &[u8]) -> [&[u8]; 3] {
    assert_eq!(&tables[..8], b"RSD PTR ");
    assert_eq!(tables[15], 2, "revision");
    for len in [20, 36] {
        assert_eq!(tables[..len].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
    let xsdt_at = address(tables, 24);
    let xsdt = table(tables, xsdt_at, "XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(tables, address(tables, xsdt_at + 36), "FACP");
    let madt = table(tables, address(tables, xsdt_at + 44), "APIC");
    let dsdt = table(tables, address(fadt, 140), "DSDT");
    [dsdt, fadt, madt]
}

#[test]
fn tables_are_found_and_their_checksums_hold() {
    for (cpus, devices) in [(1, 0), (2, 5), (32, 19)] {
        let tables = all(cpus, devices);
        let [_, fadt, madt] = found(&tables);
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
        assert_eq!(madt.len(), 44 + usize::from(cpus) * 8 + 12);
    }
}

#[test]
fn more_devices_than_interrupt_lines_are_refused() {
    let one = Cpus::try_from(1).unwrap();
    let error = tables(one, &[MmioSlot::nth(0).unwrap(); 20]).err().unwrap().to_string();
    assert_eq!(error, "20 virtio devices are more than the 19 that a machine can have");
    let most = all(Cpus::MAX, 19).len() as u64;
    assert!(most < layout::ACPI_END - layout::ACPI, "{most} bytes");
}

fn iasl(dir: &FilePath, arguments: &[&str]) -> String {
    let output = Command::new("iasl").current_dir(dir).args(arguments).output();
    let output = output.expect("running iasl, of the Debian package acpica-tools");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    text
}

/// What ACPICA reads in the tables, and that it compiles what it has read.
#[test]
fn acpica_understands_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let tables = all(3, 19);
    let mut sources = Vec::new();
    for (name, table) in ["dsdt", "fadt", "madt"].into_iter().zip(found(&tables)) {
        std::fs::write(dir.path().join(format!("{name}.dat")), table).unwrap();
        iasl(dir.path(), &["-d", &format!("{name}.dat")]);
        sources.push(std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap());
    }
    let [dsdt, fadt, madt] = &sources[..] else { unreachable!() };
    let text = iasl(dir.path(), &["-ve", "-p", "again", "dsdt.dsl"]);
    assert!(text.contains("0 Errors"), "{text}");
    assert_eq!(dsdt.matches("LNRO0005").count(), 19);
    for expected in
        ["Device (V018)", "0xD0012000,", "0x00000017,", "ACPI0013", "VM_Gen_Counter", "0x0009F000", "_S5"]
    {
        assert!(dsdt.contains(expected), "{expected} in {dsdt}");
    }
    assert!(dsdt.contains("Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive"));
    assert!(fadt.contains("Sleep Control Register : [Generic Address Structure]"));
    assert_eq!(madt.matches("[Processor Local APIC]").count(), 3);
    assert_eq!(madt.matches("[I/O APIC]").count(), 1);
}
