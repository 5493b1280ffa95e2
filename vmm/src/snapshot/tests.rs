use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

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
    write(&file, &memory, None, &state).unwrap();
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

/// Of RAM of its own and of RAM that is a snapshot's.
#[test]
fn what_was_never_touched_is_not_read_and_nothing_is_lost() {
    let pagemap = Pagemap::open().unwrap();
    let mib = MemoryMib::try_from(128).unwrap();
    let memory = memory::allocate(mib).unwrap();
    memory.write_slice(b"first", GuestAddress(0)).unwrap();
    memory.write_slice(b"across two pages", GuestAddress((8 << 20) + 7 * PAGE - 5)).unwrap();
    memory.write_slice(b"last", GuestAddress((128 << 20) - 4)).unwrap();
    // Touched, and zero again.
    memory.write_slice(b"gone", GuestAddress(20 << 20)).unwrap();
    memory.write_slice(&[0; 4], GuestAddress(20 << 20)).unwrap();
    let saved = same_with_and_without(&memory, &pagemap);

    let restored = memory::map(mib, &saved, header::RAM_START).unwrap();
    same_with_and_without(&restored, &pagemap);
    let restored = memory::map(mib, &saved, header::RAM_START).unwrap();
    // Over the file's: one in a hole, one changed, one zeroed; one in a hole is only read.
    restored.write_slice(b"new", GuestAddress(40 << 20)).unwrap();
    restored.write_slice(b"x", GuestAddress((8 << 20) + 7 * PAGE)).unwrap();
    restored.write_slice(&[0; 8], GuestAddress(0)).unwrap();
    restored.read_slice(&mut [0], GuestAddress(60 << 20)).unwrap();
    let again = same_with_and_without(&restored, &pagemap);
    let read = |file: &File, at: u64| {
        let mut bytes = [1; 8];
        file.read_exact_at(&mut bytes, header::RAM_START + at).unwrap();
        bytes
    };
    assert_eq!(read(&again, 0), [0; 8]);

    // The guest has given back what the file holds, what it had changed, and a hole, and has used a part of that again.
    let restored = memory::map(mib, &saved, header::RAM_START).unwrap();
    restored.write_slice(b"x", GuestAddress((8 << 20) + 7 * PAGE)).unwrap();
    for given in [0, 8 << 20, 40 << 20] {
        memory::give_back(&restored, given, 2 << 20).unwrap();
    }
    restored.write_slice(b"after it", GuestAddress(9 << 20)).unwrap();
    let given = same_with_and_without(&restored, &pagemap);
    assert_eq!([0, 8 << 20, (8 << 20) + 7 * PAGE - 5, 40 << 20].map(|at| read(&given, at)), [[0; 8]; 4]);
    assert_eq!(&read(&given, 9 << 20), b"after it");
    assert_eq!(&read(&given, (128 << 20) - 8), b"\0\0\0\0last");
}

/// What is written of `memory`, which is the same with `pagemap` and without; with it no further page is touched.
fn same_with_and_without(memory: &GuestMemory, pagemap: &Pagemap) -> File {
    let there = || pagemap.there(memory.get_host_address(GuestAddress(0)).unwrap() as u64, 32 << 10).unwrap();
    let (before, few) = (there(), tempfile::tempfile().unwrap());
    let ram = ram::write(&few, memory, Some(pagemap)).unwrap();
    let anonymous = memory.iter().all(|region| region.file_offset().is_none());
    // The kernel maps neighbours of a file's page with it.
    assert!(there() == before || !anonymous);
    assert!(!there()[100 << 20 >> 12], "a hole of the file was read");
    let all = tempfile::tempfile().unwrap();
    assert_eq!(ram::write(&all, memory, None).unwrap(), ram);
    let content = |file: &File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(content(&few) == content(&all));
    assert!(few.metadata().unwrap().blocks() * 512 < 1 << 20);
    few
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
