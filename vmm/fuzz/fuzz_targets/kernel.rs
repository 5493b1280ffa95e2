//! Any bytes as a kernel's file: it is loaded or refused, and RAM below 1 MiB is left alone.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};
use vmm::GuestMemory;
use vmm::arch::x86_64::Kernel;
use vmm::memory;
use vmm::spec::MemoryMib;

const LOW: usize = 1 << 20;

/// It is never unmapped, so that there is one for all inputs. What an input has loaded stays there.
static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| memory::allocate(MemoryMib::try_from(MemoryMib::MIN).unwrap()).unwrap());

fuzz_target!(|input: &[u8]| {
    // A file of its own each time: pages of it may be mapped by then, and must not be cut off.
    let file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(input, 0).unwrap();
    if let Ok(kernel) = Kernel::load(&MEMORY, &file) {
        assert!(kernel.pvh.is_none_or(|pvh| pvh as usize >= LOW));
    }
    let mut low = vec![0; LOW];
    MEMORY.read_slice(&mut low, GuestAddress(0)).unwrap();
    assert!(low.iter().all(|byte| *byte == 0), "the kernel was loaded below 1 MiB");
});
