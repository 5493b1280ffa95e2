use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::arch::x86_64;
use crate::memory::PAGE;

/// A machine with a KVM that runs no guest: what is saved of it is what KVM keeps.
fn machine() -> (GuestMemory, MachineState) {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.expect("opening /dev/kvm, which these tests need");
    let (cpus, mib) = (Cpus::try_from(2).unwrap(), MemoryMib::try_from(128).unwrap());
    let memory = memory::allocate(mib).unwrap();
    let vm = Vm::new(&x86_64::kvm(kvm.into()).unwrap(), &memory).unwrap();
    let vcpus: Vec<_> = (0..2).map(|id| vm.create_vcpu(id, cpus).unwrap()).collect();
    let vcpus = vcpus.iter().map(|vcpu| VcpuState::save(&vm, vcpu).unwrap()).collect();
    let vm = VmState::save(&vm).unwrap();
    (memory, MachineState { cpus, memory: mib, vm, vcpus, devices: Vec::new() })
}

fn saved() -> File {
    let (memory, state) = machine();
    memory.write_slice(b"first", GuestAddress(0)).unwrap();
    memory.write_slice(b"across two pages", GuestAddress(7 * PAGE - 5)).unwrap();
    memory.write_slice(b"last", GuestAddress((128 << 20) - 4)).unwrap();
    let file = tempfile::tempfile().unwrap();
    write(&file, &memory, &state).unwrap();
    file
}

#[test]
fn what_was_saved_is_mapped_again_and_stays() {
    let file = saved();
    let summary = inspect(&file).unwrap();
    assert_eq!((summary.cpus.get(), u32::from(summary.memory)), (2, 128));
    assert!(!summary.network && !summary.used);
    verify(&file).unwrap();
    // Four pages and the state, of 128 MiB.
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
    for _ in 0..2 {
        let memory = memory::map(summary.memory, &file, header::RAM_START).unwrap();
        let read = |at, len| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        assert_eq!(read(0, 6), b"first\0");
        assert_eq!(read(7 * PAGE - 5, 16), b"across two pages");
        assert_eq!(read((128 << 20) - 5, 5), b"\0last");
        // The next one does not see it.
        memory.write_slice(&vec![0xff; 1 << 20], GuestAddress(0)).unwrap();
    }
    verify(&file).unwrap();
    mark_used(&file).unwrap();
    assert!(inspect(&file).unwrap().used);
}

#[test]
fn a_file_that_has_changed_is_refused() {
    let file = saved();
    let length = file.metadata().unwrap().len();
    let at = length - 64;
    // A bit of each part: magic, version, mark, lengths, checksums, RAM that was written, RAM that was a hole, state.
    let ram = header::RAM_START;
    for place in [0, 9, 13, 17, 25, 29, 33, 50, 61, ram, ram + 7 * PAGE + 3, ram + 50 * PAGE, at] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 4], place).unwrap();
        let error = inspect(&file).and_then(|_| verify(&file)).unwrap_err().to_string();
        assert!(!error.is_empty(), "{place}");
        file.write_all_at(&byte, place).unwrap();
    }
    verify(&file).unwrap();
    file.write_all_at(&2_u32.to_le_bytes(), 8).unwrap();
    assert_eq!(
        inspect(&file).unwrap_err().to_string(),
        "the snapshot is of format 2, and this voidrun knows 1"
    );
    file.write_all_at(&1_u32.to_le_bytes(), 8).unwrap();
    for shorter in [0, 63, 64, ram, length - 1, length + 1] {
        file.set_len(shorter).unwrap();
        assert!(inspect(&file).is_err(), "{shorter}");
    }
    let mut other = tempfile::tempfile().unwrap();
    other.write_all(&[b'x'; 4096]).unwrap();
    let error = inspect(&other).unwrap_err().to_string();
    assert_eq!(error, "the file is no snapshot, or was never finished");
}
