//! Any bytes as a snapshot: refused or taken, and nothing else. What is fuzzed are its header and its state; the checksums are made right
//! for half of the inputs, so that the state is read.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vmm::snapshot::{inspect, mark_used, verify};

/// As the format has them: see vmm/src/snapshot/header.rs.
const HEADER: usize = 64;
const RAM_START: u64 = 2 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((header, state)) = input.split_at_checked(HEADER) else { return };
    let mut header = header.to_vec();
    // Sparse: as much RAM as it says, within reason.
    let ram = u64::from_le_bytes(header[16..24].try_into().unwrap()) % (1 << 30);
    if header[50] % 2 == 0 {
        header[..12].copy_from_slice(b"VOIDSNAP\x01\0\0\0");
        header[12..16].fill(0);
        header[16..24].copy_from_slice(&ram.to_le_bytes());
        header[24..28].fill(0);
        header[28..32].copy_from_slice(&crc32c::crc32c(state).to_le_bytes());
        header[32..40].copy_from_slice(&(state.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c(&header[..HEADER - 4]);
        header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let file = File::from(memfd_create("snapshot", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(state, RAM_START + ram).unwrap();
    if let Ok(summary) = inspect(&file) {
        assert!(!summary.used && summary.memory.bytes() == ram);
        // All of it is a hole, of which the checksum is 0.
        verify(&file).unwrap();
        mark_used(&file).unwrap();
        assert!(inspect(&file).unwrap().used);
    }
});
