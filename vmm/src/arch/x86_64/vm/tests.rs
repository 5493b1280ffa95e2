use std::fs::OpenOptions;

use super::super::VcpuState;
use super::*;
use crate::spec::MemoryMib;

fn open() -> Kvm {
    let file = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm(file.expect("opening /dev/kvm, which these tests need").into()).unwrap()
}

fn machine(kvm: &Kvm) -> Vm {
    Vm::new(kvm, &memory::allocate(MemoryMib::try_from(128).unwrap()).unwrap()).unwrap()
}

fn json<T: Serialize>(state: &T) -> serde_json::Value {
    serde_json::to_value(state).unwrap()
}

#[test]
fn no_other_file_is_taken_for_kvm() {
    let null = OpenOptions::new().read(true).open("/dev/null").unwrap();
    assert!(matches!(kvm(null.into()), Err(ArchError::Version(-1))));
}

#[test]
fn every_vcpu_knows_its_place() {
    let kvm = open();
    let vm = machine(&kvm);
    let count = Cpus::try_from(3).unwrap();
    for id in 0..3 {
        let vcpu = vm.create_vcpu(id, count).unwrap();
        let leaves = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let leaf = leaves.as_slice().iter().find(|leaf| leaf.function == 1).unwrap();
        assert_eq!((leaf.ebx >> 24, leaf.ebx >> 16 & 0xff), (id.into(), 4));
        assert_ne!(leaf.ecx & 1 << 24, 0, "TSC deadline timer");
    }
}

/// Saved, through JSON, restored in another machine, saved again: the same.
#[test]
fn state_survives() {
    let kvm = open();
    let (from, to) = (machine(&kvm), machine(&kvm));
    let count = Cpus::try_from(2).unwrap();
    let vcpus: Vec<_> = (0..2).map(|id| from.create_vcpu(id, count).unwrap()).collect();
    let mut regs = vcpus[0].get_regs().unwrap();
    (regs.rax, regs.r15) = (0x1234_5678_9abc_def0, 42);
    vcpus[0].set_regs(&regs).unwrap();
    let mut sregs = vcpus[0].get_sregs().unwrap();
    sregs.cr3 = 0x9000;
    vcpus[0].set_sregs(&sregs).unwrap();
    let star =
        kvm_bindings::kvm_msr_entry { index: 0xc000_0081, data: 0x0023_0010 << 32, ..Default::default() };
    msr::set(&vcpus[0], &[star]).unwrap();
    let mut pit = from.fd.get_pit2().unwrap();
    pit.channels[0].count = 0x1234;
    from.fd.set_pit2(&pit).unwrap();

    let vm_state = VmState::save(&from).unwrap();
    VmState::restore(&serde_json::from_value(json(&vm_state)).unwrap(), &to).unwrap();
    for (vcpu, id) in vcpus.iter().zip(0..) {
        let mut state = json(&VcpuState::save(&from, vcpu).unwrap());
        set_xmm3(&mut state["fpu"]);
        let restored = to.create_bare_vcpu(id).unwrap();
        serde_json::from_value::<VcpuState>(state.clone()).unwrap().restore(&to, &restored).unwrap();
        let again = json(&VcpuState::save(&to, &restored).unwrap());
        let (state, again) = (without_clocks(state), without_clocks(again));
        for (name, part) in state.as_object().unwrap() {
            assert_eq!(part, &again[name], "{name} of vCPU {id}");
        }
        if id == 0 {
            assert_eq!(restored.get_regs().unwrap().r15, 42);
            assert_eq!(restored.get_fpu().unwrap().xmm[3], [0x5a; 16]);
            let star = msr::get(&restored, &[0xc000_0081]).unwrap();
            assert_eq!(star[0].data, 0x0023_0010 << 32);
        }
    }
    assert_eq!(to.fd.get_pit2().unwrap().channels[0].count, 0x1234);
}

/// As a guest's instruction would: sets the register and, in an XSAVE area, the bit that says so (Intel SDM volume 1, section
/// 13.4). KVM_SET_FPU leaves that bit alone.
fn set_xmm3(fpu: &mut serde_json::Value) {
    if let Some(words) = fpu.get_mut("Xsave") {
        for word in 52..56 {
            words[word] = 0x5a5a_5a5a.into();
        }
        words[128] = (words[128].as_u64().unwrap() | 2).into();
    } else {
        fpu["Legacy"]["xmm"][3] = vec![0x5a; 16].into();
    }
}

/// Without the MSRs that go on by themselves.
fn without_clocks(mut state: serde_json::Value) -> serde_json::Value {
    let msrs: Vec<kvm_bindings::kvm_msr_entry> = serde_json::from_value(state["msrs"].clone()).unwrap();
    let still: Vec<_> =
        msrs.iter().filter(|msr| msr.index != 0x10).map(|msr| (msr.index, msr.data)).collect();
    assert!(still.len() > 20, "only {} MSRs were saved", still.len());
    state["msrs"] = serde_json::to_value(still).unwrap();
    state
}

#[test]
fn a_state_of_another_cpu_is_refused() {
    let kvm = open();
    let vm = machine(&kvm);
    let vcpu = vm.create_vcpu(0, Cpus::try_from(1).unwrap()).unwrap();
    let state = json(&VcpuState::save(&vm, &vcpu).unwrap());
    let restored = vm.create_bare_vcpu(1).unwrap();
    let restore = |leaves: &[kvm_cpuid_entry2]| {
        let mut state = state.clone();
        state["cpuid"] = json(&leaves);
        serde_json::from_value::<VcpuState>(state).unwrap().restore(&vm, &restored)
    };
    let leaves: Vec<kvm_cpuid_entry2> = serde_json::from_value(state["cpuid"].clone()).unwrap();
    let mut more = leaves.clone();
    let leaf = more.iter_mut().find(|leaf| (leaf.function, leaf.index) == (7, 0)).unwrap();
    // Intel has reserved it.
    assert_eq!(leaf.edx & 1, 0);
    leaf.edx |= 1;
    match restore(&more) {
        Err(ArchError::Lacking(what)) => assert_eq!(what, "leaf 7 EDX bit 0"),
        other => panic!("{other:?}"),
    }
    let mut other = leaves;
    other.iter_mut().find(|leaf| leaf.function == 0).unwrap().ebx ^= 1;
    assert!(matches!(restore(&other), Err(ArchError::Vendor { .. })));
}

#[test]
fn a_damaged_state_is_refused() {
    let kvm = open();
    let vm = machine(&kvm);
    let vcpu = vm.create_vcpu(0, Cpus::try_from(1).unwrap()).unwrap();
    let state = json(&VcpuState::save(&vm, &vcpu).unwrap());
    let restore = |state| {
        let vm = machine(&kvm);
        let vcpu = vm.create_bare_vcpu(0).unwrap();
        serde_json::from_value::<VcpuState>(state).unwrap().restore(&vm, &vcpu)
    };
    let mut short = state.clone();
    short["fpu"] = serde_json::json!({ "Xsave": vec![0; 100] });
    assert!(matches!(restore(short), Err(ArchError::State(_))));
    let mut long = state.clone();
    long["cpuid"] = vec![state["cpuid"][0].clone(); 300].into();
    assert!(matches!(restore(long), Err(ArchError::State(_))));
    let mut unknown = state;
    let msr = kvm_bindings::kvm_msr_entry { index: 0x1234_5678, data: 1, ..Default::default() };
    unknown["msrs"] = json(&[msr]);
    assert!(matches!(restore(unknown), Err(ArchError::Msr { index: 0x1234_5678, .. })));
}
