use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

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
    write(&file, &memory, None, None, &state).unwrap();
    file
}

/// RAM with the pages of a snapshot, over those of its base where it has one; and what it began with.
fn restored(base: Option<(&File, &Header, &Runs)>, file: &File, over: &Runs) -> (GuestMemory, Origin) {
    let offset = header::PAGES_START;
    let of_base = base.map(|(file, _, runs)| Pages { file, offset, runs });
    let pages: Vec<_> = of_base.into_iter().chain([Pages { file, offset, runs: over }]).collect();
    let memory = memory::map(MemoryMib::try_from(128).unwrap(), &pages).unwrap();
    let runs = base.map_or_else(Runs::default, |(_, _, runs)| runs.clone());
    let mapped = Arc::new(Mapped::new(runs, over.clone(), 128 << 20));
    let base = base.map(|(file, header, _)| Base { file: file.try_clone().unwrap(), header: *header });
    (memory, Origin { base, mapped })
}

fn read(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn what_was_saved_is_mapped_again_and_stays() {
    let file = saved();
    let summary = inspect(&file).unwrap();
    assert_eq!((summary.cpus.get(), u32::from(summary.memory)), (2, 128));
    assert!(!summary.network && !summary.used && !summary.has_base);
    verify(&file).unwrap();
    // Eight pages, of which four are zero, the last one, and the state, of 128 MiB.
    let Saved { runs, .. } = Saved::read(&file).unwrap();
    assert_eq!(Vec::from(runs.clone()), [(0, 8), ((128 << 8) - 1, 1)]);
    assert!(file.metadata().unwrap().len() < 1 << 20);
    for _ in 0..2 {
        let (memory, _) = restored(None, &file, &runs);
        assert_eq!(read(&memory, 0, 6), b"first\0");
        assert_eq!(read(&memory, 7 * PAGE - 5, 16), b"across two pages");
        assert_eq!(read(&memory, (128 << 20) - 5, 5), b"\0last");
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
    let (saved, runs) = same_with_and_without(&memory, &pagemap, None);
    assert_eq!(Vec::from(runs.clone()), [(0, 1), ((8 << 8) + 6, 2), ((128 << 8) - 1, 1)]);

    // It has gone on from a snapshot of its own.
    let (memory, origin) = restored(None, &saved, &runs);
    same_with_and_without(&memory, &pagemap, Some(&origin));
    let (memory, origin) = restored(None, &saved, &runs);
    change(&memory);
    let (again, runs) = same_with_and_without(&memory, &pagemap, Some(&origin));
    assert_eq!(Vec::from(runs.clone()), [((8 << 8) + 6, 2), (40 << 8, 1), ((128 << 8) - 1, 1)]);
    let (again, _) = restored(None, &again, &runs);
    assert_eq!(read(&again, (8 << 20) + 7 * PAGE - 5, 16), b"acrosx two pages");
}

/// Changes RAM of the test above: one where there was nothing, one changed, one zeroed; one is only read, and one is written as it was.
fn change(memory: &GuestMemory) {
    memory.write_slice(b"new", GuestAddress(40 << 20)).unwrap();
    memory.write_slice(b"x", GuestAddress((8 << 20) + 7 * PAGE)).unwrap();
    memory.write_slice(&[0; 8], GuestAddress(0)).unwrap();
    memory.write_slice(b"last", GuestAddress((128 << 20) - 4)).unwrap();
    read(memory, 60 << 20, 1);
}

/// What is written of `memory`, which is the same with `pagemap` and without; with it no further page is touched.
fn same_with_and_without(memory: &GuestMemory, pagemap: &Pagemap, origin: Option<&Origin>) -> (File, Runs) {
    let own = || pagemap.own(memory.get_host_address(GuestAddress(0)).unwrap() as u64, 32 << 10).unwrap();
    let (before, few) = (own(), tempfile::tempfile().unwrap());
    let ram = ram::write(&few, memory, Some(pagemap), origin).unwrap();
    assert!(own() == before);
    assert!(!before[100 << 20 >> 12]);
    let all = tempfile::tempfile().unwrap();
    assert_eq!(ram::write(&all, memory, None, origin).unwrap(), ram);
    let content = |file: &File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(content(&few) == content(&all));
    assert_eq!(few.metadata().unwrap().len(), header::PAGES_START + ram.runs.pages() * PAGE);
    (few, ram.runs)
}

#[test]
fn what_is_as_in_the_base_is_not_stored() {
    let file = saved();
    let Saved { header, runs, .. } = Saved::read(&file).unwrap();
    let base = Some((&file, &header, &runs));
    let (empty, none) = (tempfile::tempfile().unwrap(), Runs::default());
    let (memory, origin) = restored(base, &empty, &none);
    let pagemap = Pagemap::open().unwrap();
    let (_, nothing) = same_with_and_without(&memory, &pagemap, Some(&origin));
    assert_eq!(nothing, none);
    change(&memory);
    memory.write_slice(&[0; 5], GuestAddress(7 * PAGE - 5)).unwrap();
    let (over, runs) = same_with_and_without(&memory, &pagemap, Some(&origin));
    // What lies between the first two goes with them.
    assert_eq!(Vec::from(runs.clone()), [(0, 7), ((8 << 8) + 7, 1), (40 << 8, 1)]);
    let (again, origin) = restored(base, &over, &runs);
    assert!(read(&again, 0, 128 << 20) == read(&memory, 0, 128 << 20));

    // What was over the base is there again in what is taken of that, but for what the guest has given back: 40 MiB and behind. Of
    // the base it has given back the last page.
    again.write_slice(b"newer", GuestAddress(50 << 20)).unwrap();
    for given in [40, 126] {
        memory::give_back(&again, given << 20, 2 << 20, Some(&origin.mapped)).unwrap();
    }
    let (over, runs) = same_with_and_without(&again, &pagemap, Some(&origin));
    let expected = [(0, 7), ((8 << 8) + 7, 1), (50 << 8, 1), ((128 << 8) - 1, 1)];
    assert_eq!(Vec::from(runs.clone()), expected);
    let (last, _) = restored(base, &over, &runs);
    assert!(read(&last, 0, 128 << 20) == read(&again, 0, 128 << 20));
    assert_eq!(read(&last, (128 << 20) - 4, 4), [0; 4]);
}

#[test]
fn zeros_over_the_base_are_holes() {
    let memory = memory::allocate(MemoryMib::try_from(128).unwrap()).unwrap();
    memory.write_slice(&vec![1; 8 << 20], GuestAddress(0)).unwrap();
    let (_, state) = machine();
    let file = tempfile::tempfile().unwrap();
    write(&file, &memory, None, None, &state).unwrap();
    let Saved { header, runs, .. } = Saved::read(&file).unwrap();
    let none = tempfile::tempfile().unwrap();
    let (memory, origin) = restored(Some((&file, &header, &runs)), &none, &Runs::default());
    memory::give_back(&memory, 0, 8 << 20, Some(&origin.mapped)).unwrap();
    memory.write_slice(&[1], GuestAddress(4 << 20)).unwrap();
    let over = tempfile::tempfile().unwrap();
    let ram = ram::write(&over, &memory, Pagemap::open().as_ref(), Some(&origin)).unwrap();
    assert_eq!(Vec::from(ram.runs), [(0, 8 << 8)]);
    assert!(over.metadata().unwrap().blocks() * 512 < 1 << 20);
}

/// What a machine goes on from is what it was taken over, or nothing.
#[test]
fn the_base_is_needed_and_no_other_does() {
    let (file, other) = (saved(), saved());
    let (_, machine) = machine();
    let spec = |mib: u32| {
        let fds = serde_json::json!({ "kvm": 4, "control": 5, "vsock": 6, "ready": 7 });
        let spec = serde_json::json!({
            "version": crate::spec::VERSION, "id": "test", "cpus": 2, "memory": mib, "cmdline": "", "fds": fds, "bootTimeoutMs": 1,
        });
        serde_json::from_value::<MachineSpec>(spec).unwrap()
    };
    let (_, origin, memory) = Saved::open(&file, None, true, &spec(128)).unwrap();
    memory.write_slice(b"changed", GuestAddress(0)).unwrap();
    let over = tempfile::tempfile().unwrap();
    write(&over, &memory, None, Some(&origin), &machine).unwrap();
    assert!(verify(&over).unwrap().has_base);
    assert!(over.metadata().unwrap().len() < file.metadata().unwrap().len());

    let (saved, again, memory) = Saved::open(&over, Some(&file), true, &spec(128)).unwrap();
    assert_eq!(saved.base, Some(again.base.unwrap().header), "it is no base itself");
    assert_eq!(read(&memory, 0, 8), b"changed\0");
    assert_eq!(read(&memory, 7 * PAGE - 5, 16), b"across two pages");

    for (base, expected) in [
        (None, "the snapshot that this one was taken over is not there"),
        (Some(&other), "the snapshot that this one was taken over is another one now"),
        (Some(&over), "the snapshot that this one was taken over is another one now"),
    ] {
        assert_eq!(Saved::open(&over, base, true, &spec(128)).unwrap_err().to_string(), expected);
    }
}

#[test]
fn runs_are_bounded() {
    for mib in [MemoryMib::MIN, 512, 513, 64 << 10, MemoryMib::MAX] {
        let pages = u64::from(mib) << 8;
        assert!(pages.div_ceil(ram::gap(pages) + 2) <= ram::MAX_RUNS, "{mib} MiB");
    }
    let memory = memory::allocate(MemoryMib::try_from(128).unwrap()).unwrap();
    // Sixteen pages of zeros between the first three, and seventeen before the others.
    for page in [0, 17, 34, 52, 70] {
        memory.write_slice(b"x", GuestAddress(page * PAGE)).unwrap();
    }
    let file = tempfile::tempfile().unwrap();
    let ram = ram::write(&file, &memory, None, None).unwrap();
    assert_eq!(Vec::from(ram.runs), [(0, 35), (52, 1), (70, 1)]);
}

#[test]
fn a_file_that_has_changed_is_refused() {
    let file = saved();
    let length = file.metadata().unwrap().len();
    let at = length - 64;
    // A bit of each part: magic, version, mark, lengths, checksums, pages that were written, one that was a hole, the state.
    let ram = header::PAGES_START;
    for place in [0, 9, 13, 17, 25, 29, 33, 50, 61, ram, ram + 7 * PAGE + 3, ram + 3 * PAGE, at] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 4], place).unwrap();
        let error = inspect(&file).and_then(|_| verify(&file)).unwrap_err().to_string();
        assert!(!error.is_empty(), "{place}");
        file.write_all_at(&byte, place).unwrap();
    }
    verify(&file).unwrap();
    file.write_all_at(&1_u32.to_le_bytes(), 8).unwrap();
    assert_eq!(
        inspect(&file).unwrap_err().to_string(),
        "the snapshot is of format 1, and this voidrun knows 2"
    );
    file.write_all_at(&2_u32.to_le_bytes(), 8).unwrap();
    for other in [length + 1, length - 1, ram, 64, 63, 0] {
        file.set_len(other).unwrap();
        let error = inspect(&file).unwrap_err().to_string();
        let expected = if other < 64 { "is no snapshot" } else { "bytes are not its length" };
        assert!(error.contains(expected), "{other}: {error}");
    }
    let mut other = tempfile::tempfile().unwrap();
    other.write_all(&[b'x'; 4096]).unwrap();
    let error = inspect(&other).unwrap_err().to_string();
    assert_eq!(error, "the file is no snapshot, or was never finished");
}

/// With checksums that are right: runs that are not those of the pages, or not of this RAM, or out of order.
#[test]
fn runs_that_make_no_sense_are_refused() {
    let (_, machine) = machine();
    let pages = 128 << 8;
    for (runs, is_right) in [
        ("[]", false),
        ("[[0,1],[7,2]]", true),
        ("[[0,3]]", true),
        (&*format!("[[{},3]]", pages - 3), true),
        (&*format!("[[{},3]]", pages - 2), false),
        ("[[0,1],[7,3]]", false),
        ("[[7,2],[0,1]]", false),
        ("[[0,2],[1,1]]", false),
        ("[[0,3],[9,0]]", false),
        ("[[4294967295,3]]", false),
    ] {
        let machine = serde_json::to_string(&machine).unwrap();
        let json = format!("{{\"runs\":{runs},\"machine\":{machine}}}");
        let (state_len, state_crc) = (json.len() as u64, crc32c::crc32c(json.as_bytes()));
        let pages_len = 3 * PAGE;
        let pages_crc = crc32c::crc32c(&vec![0; pages_len as usize]);
        let header = Header { pages_len, pages_crc, state_len, state_crc, used: false };
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&header.encode(), 0).unwrap();
        file.write_all_at(json.as_bytes(), header.state_start()).unwrap();
        assert_eq!(verify(&file).is_ok(), is_right, "{runs}");
    }
}
