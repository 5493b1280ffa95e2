use std::io::Write as _;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::*;

fn ram(bytes: u64) -> GuestMemory {
    let ranges: Vec<_> =
        layout::ram(bytes).into_iter().map(|(start, len)| (GuestAddress(start), len as usize)).collect();
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

fn kernel(end: u64) -> Kernel {
    Kernel { pvh: None, entry: 0x10_0000, setup_header: vec![0xee; 0x26c - SETUP_HEADER], end }
}

fn u64_in(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_in(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

proptest! {
    /// Nothing overlaps, nothing lies in the hole, nothing is lost.
    #[test]
    fn the_memory_map_tells_of_all_ram(mib in 128_u64..10 * 1024) {
        let map = memory_map(&ram(mib << 20));
        let reserved = layout::HIGH_RAM - layout::RESERVED;
        let told: u64 = map.iter().filter(|(_, kind)| *kind == Kind::Ram).map(|(range, _)| range.len).sum();
        prop_assert_eq!(told + reserved, mib << 20);
        for pair in map.windows(2) {
            prop_assert!(pair[0].0.start + pair[0].0.len <= pair[1].0.start);
        }
        for (Range { start, len }, _) in &map {
            prop_assert!(start + len <= layout::HOLE || *start >= layout::HOLE_END);
        }
        let (reserved_range, _) = map.iter().find(|(_, kind)| *kind == Kind::Reserved).unwrap();
        for address in [layout::GENERATION_ID, layout::ACPI, layout::ACPI_END - 1] {
            prop_assert!((reserved_range.start..reserved_range.start + reserved_range.len).contains(&address));
        }
    }
}

#[test]
fn start_info_as_the_guest_reads_it() {
    let memory = ram(5 << 30);
    write_start_info(&memory, Some(Range { start: 0x700_0000, len: 12345 })).unwrap();
    let read = |address, len| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    };
    let info = read(0x6000, 56);
    assert_eq!([u32_in(&info, 0), u32_in(&info, 4), u32_in(&info, 12)], [0x336e_c578, 1, 1]);
    assert_eq!([u64_in(&info, 16), u64_in(&info, 24), u64_in(&info, 32)], [0x6040, 0x2_0000, 0xe_0000]);
    assert_eq!((u64_in(&info, 40), u32_in(&info, 48)), (0x7000, 4));
    let module = read(0x6040, 32);
    assert_eq!((u64_in(&module, 0), u64_in(&module, 8)), (0x700_0000, 12345));
    let map = read(0x7000, 4 * 24);
    let entries: Vec<_> =
        map.chunks(24).map(|entry| (u64_in(entry, 0), u64_in(entry, 8), u32_in(entry, 16))).collect();
    assert_eq!(
        entries,
        [
            (0, 0x9_f000, 1),
            (0x9_f000, 0x6_1000, 2),
            (0x10_0000, (3 << 30) - (1 << 20), 1),
            (4 << 30, 2 << 30, 1)
        ]
    );
}

#[test]
fn the_zero_page_as_the_guest_reads_it() {
    let map = memory_map(&ram(128 << 20));
    let page =
        zero_page(&kernel(0).setup_header, "quiet", Some(Range { start: 0x700_0000, len: 12345 }), &map);
    assert_eq!(page.len(), 4096);
    assert_eq!((u64_in(&page, 0x70), page[0x1e8], page[0x210]), (0xe_0000, 3, 0xff));
    assert_eq!((page[0x1f0], page[0x1f1], page[0x26b], page[0x26c]), (0, 0xee, 0xee, 0));
    assert_eq!([0x218, 0x21c, 0x228, 0x238].map(|at| u32_in(&page, at)), [0x700_0000, 12345, 0x2_0000, 5]);
    assert_eq!((u64_in(&page, 0x2e4), u64_in(&page, 0x2ec), u32_in(&page, 0x2f4)), (0x9_f000, 0x6_1000, 2));
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let memory = ram(128 << 20);
    write_cmdline(&memory, &"x".repeat(2047)).unwrap();
    let error = write_cmdline(&memory, &"x".repeat(2048)).unwrap_err().to_string();
    assert_eq!(error, "the kernel's command line has 2048 bytes, and at most 2047 fit");
    assert!(matches!(write_cmdline(&memory, "a\0b"), Err(BootError::CmdlineNul)));
}

#[test]
fn the_initramfs_lies_above_the_kernel_at_the_end_of_low_ram() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    for mib in [128, 3072, 5120] {
        let memory = ram(mib << 20);
        let range = place_initramfs(&memory, &kernel(0x200_0000), &file).unwrap();
        let low_end = (mib << 20).min(layout::HOLE);
        assert_eq!(range, Range { start: low_end - 3 * 4096, len: 10_000 });
        let mut found = vec![0; 10_001];
        memory.read_slice(&mut found, GuestAddress(range.start)).unwrap();
        assert!(found[..10_000].iter().all(|byte| *byte == 7) && found[10_000] == 0);
    }
    let memory = ram(128 << 20);
    place_initramfs(&memory, &kernel((128 << 20) - 3 * 4096), &file).unwrap();
    let error = place_initramfs(&memory, &kernel((128 << 20) - 3 * 4096 + 1), &file).unwrap_err();
    assert!(matches!(error, BootError::InitramfsTooLarge { len: 10_000, room: 8192 }), "{error}");
}
