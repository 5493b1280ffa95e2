//! Any bytes as a snapshot: refused or taken, and nothing else. What is fuzzed are its header and its state; the checksums are made right
//! for half of the inputs, so that the state is read, and as many pages are there as its runs have.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vmm::snapshot::{inspect, mark_used, verify};

/// As the format has them: see vmm/src/snapshot/header.rs.
const HEADER: usize = 64;
const PAGES_START: u64 = 4096;
/// The pages: as many as it says, within reason, all of them a hole.
const MAX_PAGES: u64 = 256;

fuzz_target!(|input: &[u8]| {
    let Some((header, state)) = input.split_at_checked(HEADER) else { return };
    let mut header = header.to_vec();
    let pages = u64::from_le_bytes(header[16..24].try_into().unwrap()) % MAX_PAGES * 4096;
    if header[50] % 2 == 0 {
        header[..12].copy_from_slice(b"VOIDSNAP\x02\0\0\0");
        header[12..16].fill(0);
        header[16..24].copy_from_slice(&pages.to_le_bytes());
        header[24..28].copy_from_slice(&crc32c::crc32c(&vec![0; pages as usize]).to_le_bytes());
        header[28..32].copy_from_slice(&crc32c::crc32c(state).to_le_bytes());
        header[32..40].copy_from_slice(&(state.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c(&header[..HEADER - 4]);
        header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let file = File::from(memfd_create("snapshot", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(state, PAGES_START + pages).unwrap();
    if let Ok(summary) = inspect(&file) {
        assert!(!summary.used && summary.memory.bytes() >= pages);
        verify(&file).unwrap();
        mark_used(&file).unwrap();
        assert!(inspect(&file).unwrap().used);
    }
});
