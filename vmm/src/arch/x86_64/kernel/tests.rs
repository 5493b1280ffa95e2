use std::io::Write as _;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::*;

const RAM: u64 = 16 << 20;

/// RAM that goes away again.
fn ram() -> GuestMemory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap())
}

fn load(content: &[u8]) -> (GuestMemory, Result<Kernel, KernelError>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let memory = ram();
    let kernel = Kernel::load(&memory, &file);
    (memory, kernel)
}

fn refused(content: &[u8]) -> String {
    load(content).1.unwrap_err().to_string()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut note = [name.len() as u32, description.len() as u32, kind].map(u32::to_le_bytes).concat();
    for part in [name, description] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

const FIRST: usize = 64;
const SECOND: usize = FIRST + 56;
const OFFSET: usize = 8;
const ADDRESS: usize = 24;
const IN_FILE: usize = 32;
const IN_MEMORY: usize = 40;

/// 5000 bytes of 0xaa and as many zeros at 1 MiB, 100 bytes of 0xbb at an odd address, and the PVH entry after two other notes.
fn vmlinux() -> Vec<u8> {
    let notes = [
        note(b"Xen\0", 1, b"12345"),
        note(b"GNU\0", 18, &[9; 4]),
        note(b"Xen\0", 18, &0x10_0020_u32.to_le_bytes()),
    ]
    .concat();
    let mut file = vec![0; 0x3000];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2), (18, 62), (52, 64), (54, 56), (56, 3)] {
        put(&mut file, at, &u16::to_le_bytes(value));
    }
    put(&mut file, 24, &0x10_0010_u64.to_le_bytes());
    put(&mut file, 32, &(FIRST as u64).to_le_bytes());
    let segments = [
        (1_u32, [0x1000, 0x10_0000, 5000, 10000]),
        (1, [0x2801, 0x20_0123, 100, 100]),
        (4, [0x2900, 0, notes.len() as u64, 0]),
    ];
    for (number, (kind, values)) in segments.into_iter().enumerate() {
        put(&mut file, FIRST + number * 56, &kind.to_le_bytes());
        for (field, value) in [OFFSET, ADDRESS, IN_FILE, IN_MEMORY].into_iter().zip(values) {
            put(&mut file, FIRST + number * 56 + field, &u64::to_le_bytes(value));
        }
    }
    file[0x1000..0x1000 + 5000].fill(0xaa);
    file[0x2801..0x2801 + 100].fill(0xbb);
    put(&mut file, 0x2900, &notes);
    file
}

fn changed(at: usize, value: &[u8]) -> Vec<u8> {
    let mut file = vmlinux();
    put(&mut file, at, value);
    file
}

#[test]
fn segments_and_entries_of_an_elf_file() {
    let (memory, kernel) = load(&vmlinux());
    let kernel = kernel.unwrap();
    assert_eq!((kernel.entry, kernel.pvh, kernel.end), (0x10_0010, Some(0x10_0020), 0x20_0123 + 100));
    for (address, len, byte) in [(0x10_0000, 5000, 0xaa), (0x20_0123, 100, 0xbb)] {
        let mut found = vec![0; len + 2];
        memory.read_slice(&mut found, GuestAddress(address - 1)).unwrap();
        assert_eq!((found[0], found[len + 1]), (0, 0), "around {address:#x}");
        assert!(found[1..=len].iter().all(|b| *b == byte), "at {address:#x}");
    }
}

#[test]
fn without_a_pvh_note_there_is_no_pvh_entry() {
    let (_, kernel) = load(&changed(FIRST + 2 * 56, &0_u32.to_le_bytes()));
    assert_eq!(kernel.unwrap().pvh, None);
    let (_, kernel) = load(&changed(0x2900 + 24 + 8, &7_u32.to_le_bytes()));
    assert_eq!(kernel.unwrap().pvh, Some(0x10_0020), "another vendor's note");
}

#[test]
fn what_is_no_kernel_is_refused_with_the_reason() {
    let cases: [(&str, Vec<u8>); 14] = [
        ("neither", b"#!/bin/sh\n".to_vec()),
        ("neither", Vec::new()),
        ("cut off", vmlinux()[..40].to_vec()),
        ("not for x86-64 (ELF class 1", changed(4, &[1])),
        ("not for x86-64 (ELF class 2, machine 183)", changed(18, &[183])),
        ("not an executable at fixed addresses (ELF type 1)", changed(16, &[1])),
        ("table of program headers", changed(56, &65_u16.to_le_bytes())),
        ("beyond the end", changed(32, &u64::MAX.to_le_bytes())),
        ("loading the kernel", changed(FIRST + OFFSET, &0x2001_u64.to_le_bytes())),
        ("does not fit: it wants 0xff000 to", changed(FIRST + ADDRESS, &0xf_f000_u64.to_le_bytes())),
        (
            "does not fit: it wants 0x100000 to 0x1000001",
            changed(FIRST + IN_MEMORY, &(RAM - (1 << 20) + 1).to_le_bytes()),
        ),
        ("longer in the file", changed(SECOND + IN_MEMORY, &99_u64.to_le_bytes())),
        ("entry is in none", changed(24, &0x18_0000_u64.to_le_bytes())),
        ("PVH entry is outside", changed(0x2900 + 60, &0xffff_u32.to_le_bytes())),
    ];
    for (reason, file) in cases {
        let found = refused(&file);
        assert!(found.contains(reason), "{reason:?} in {found:?}");
    }
    let big = changed(FIRST + IN_MEMORY, &(RAM - (1 << 20)).to_le_bytes());
    assert_eq!(load(&big).1.unwrap().end, RAM, "as long as the RAM");
    let mut twice = big.clone();
    put(&mut twice, SECOND + ADDRESS, &0x10_0000_u64.to_le_bytes());
    put(&mut twice, SECOND + IN_MEMORY, &(RAM - (1 << 20)).to_le_bytes());
    assert!(refused(&twice).contains("overlap"));
}

/// A bzImage of the protocol 2.15 with 4 setup sectors and 3000 bytes of code, which wants 1 MiB at 2 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 3000];
    put(&mut file, SETUP_HEADER, &[0]);
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS\x0f\x02");
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x236, &[0x7f]);
    put(&mut file, 0x258, &0x20_0000_u64.to_le_bytes());
    put(&mut file, 0x260, &0x10_0000_u32.to_le_bytes());
    file[5 * 512..].fill(0xcc);
    file
}

#[test]
fn a_bzimage() {
    let (memory, kernel) = load(&bzimage());
    let kernel = kernel.unwrap();
    assert_eq!((kernel.entry, kernel.pvh, kernel.end), (0x10_0200, None, 0x30_0000));
    assert_eq!(kernel.setup_header, bzimage()[SETUP_HEADER..0x26c]);
    let mut found = vec![0; 3001];
    memory.read_slice(&mut found, GuestAddress(0x10_0000)).unwrap();
    assert!(found[..3000].iter().all(|b| *b == 0xcc) && found[3000] == 0);
}

#[test]
fn what_is_no_bzimage_is_refused_with_the_reason() {
    let changed = |at, value: &[u8]| {
        let mut file = bzimage();
        put(&mut file, at, value);
        file
    };
    let cases = [
        ("no 64-bit entry (boot protocol 2.11)", changed(0x206, &[11])),
        ("no 64-bit entry", changed(0x211, &[0])),
        ("no 64-bit entry", changed(0x236, &[0])),
        ("cut off", bzimage()[..0x220].to_vec()),
        ("cut off", changed(0x201, &[0x20])),
        ("ends before", changed(SETUP_HEADER, &[0xff])),
        ("does not fit", changed(0x260, &(16_u32 << 20).to_le_bytes())),
        ("does not fit", changed(0x258, &u64::MAX.to_le_bytes())),
    ];
    for (reason, file) in cases {
        let found = refused(&file);
        assert!(found.contains(reason), "{reason:?} in {found:?}");
    }
}

proptest! {
    /// Whatever the file holds: a kernel within the RAM, or an error.
    #[test]
    fn no_file_does_harm(
        is_elf: bool,
        changes in prop::collection::vec((0_usize..0x300, any::<u8>()), 0..12),
        extremes in prop::collection::vec((0_usize..0x60, prop::sample::select(vec![0, 1, u64::MAX, 1 << 63, 1 << 31, RAM, 4096])), 0..3),
        len in 0_usize..0x3000,
        cut in prop::bool::weighted(0.2),
    ) {
        let mut file = if is_elf { vmlinux() } else { bzimage() };
        for (at, byte) in changes {
            file[at] = byte;
        }
        for (field, value) in extremes {
            put(&mut file, field * 8, &value.to_le_bytes());
        }
        if cut {
            file.truncate(len);
        }
        if let Ok(kernel) = load(&file).1 {
            prop_assert!(kernel.end <= RAM);
            prop_assert!((layout::HIGH_RAM..kernel.end).contains(&kernel.entry));
            prop_assert!(kernel.setup_header.len() <= SETUP_HEADER_END - SETUP_HEADER);
        }
    }

    #[test]
    fn noise(mut file in prop::collection::vec(any::<u8>(), 0..2048), is_elf: bool) {
        if is_elf {
            let len = file.len().min(20);
            file[..len].copy_from_slice(&vmlinux()[..len]);
        } else if file.len() > 0x206 {
            put(&mut file, 0x202, b"HdrS");
        }
        if let Ok(kernel) = load(&file).1 {
            prop_assert!(kernel.end <= RAM);
        }
    }
}
