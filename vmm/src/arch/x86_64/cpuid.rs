//! What a vCPU says of itself: what KVM supports on this host, less what a guest must not have, plus its place among the
//! others. All vCPUs are cores of one package with one thread each.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The CPUID leaves of vCPU `id` of `count`. `supported` is KVM_GET_SUPPORTED_CPUID, `tsc_deadline` whether KVM has that timer
/// (KVM tells it as a capability, not in `supported`).
pub(super) fn of_vcpu(
    supported: &[kvm_cpuid_entry2],
    id: u8,
    count: u8,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let highest = supported.iter().find(|leaf| leaf.function == 0).map_or(0, |leaf| leaf.eax);
    let mut leaves: Vec<_> = supported.iter().filter(|leaf| !is_topology(leaf.function)).copied().collect();
    for leaf in &mut leaves {
        adjust(leaf, id, count, tsc_deadline);
    }
    for function in [0xb, 0x1f] {
        if function <= highest {
            leaves.extend(topology(function, id, count));
        }
    }
    leaves
}

/// Leaves that are rebuilt, or, where they are AMD's extended topology, left out: the others say it all.
fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | 0x8000_0026)
}

fn adjust(leaf: &mut kvm_cpuid_entry2, id: u8, count: u8, tsc_deadline: bool) {
    let (id, count) = (u32::from(id), u32::from(count));
    let several = count > 1;
    // Fields that count APIC IDs rather than CPUs.
    let ids = count.next_power_of_two();
    match (leaf.function, leaf.index) {
        (1, _) => {
            // APIC ID, number of APIC IDs in the package; the size of a cache line stays.
            leaf.ebx = id << 24 | ids << 16 | leaf.ebx & 0xffff;
            set(&mut leaf.edx, 28, several); // HTT: the number above counts
            set(&mut leaf.ecx, 5, false); // VMX
            set(&mut leaf.ecx, 21, true); // x2APIC
            set(&mut leaf.ecx, 24, tsc_deadline);
            set(&mut leaf.ecx, 31, true); // a hypervisor is there
        }
        // Intel's and AMD's caches: the first two levels are a core's own, further ones the package's.
        (4 | 0x8000_001d, _) if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 >= 3 { ids } else { 1 };
            leaf.eax = leaf.eax & 0x3fff | (sharing - 1) << 14;
            if leaf.function == 4 {
                leaf.eax |= (ids - 1) << 26;
            }
        }
        // WAITPKG: UMWAIT would hold the host's CPU without an exit.
        (7, 0) => set(&mut leaf.ecx, 5, false),
        // No PMU (it is switched off in KVM as well), and no SVM: nested virtualisation is the largest part of KVM that a
        // guest could attack, and its state is not saved.
        (0xa | 0x8000_000a | 0x8000_0022, _) => {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
        (0x8000_0001, _) => {
            set(&mut leaf.ecx, 1, several); // CmpLegacy: AMD's HTT means cores
            set(&mut leaf.ecx, 2, false); // SVM
            set(&mut leaf.ecx, 23, false); // performance counters
        }
        // AMD: the number of cores less one, the width of the part of an APIC ID that counts them.
        (0x8000_0008, _) => leaf.ecx = leaf.ecx & !0xf0ff | ids.trailing_zeros() << 12 | (count - 1),
        // AMD: extended APIC ID; core ID and threads a core less one; node ID and number of nodes less one.
        (0x8000_001e, _) => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, value: bool) {
    *register = *register & !(1 << bit) | u32::from(value) << bit;
}

/// Extended topology: the levels thread and core, and the end. In EAX the width of the APIC ID below the next level, in EBX the
/// number of CPUs at this one, in ECX type and number of the level, in EDX the x2APIC ID.
fn topology(function: u32, id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    let count = u32::from(count);
    let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind << 8 | index,
        edx: id.into(),
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, count.next_power_of_two().trailing_zeros(), count, 2), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let mut found = leaves.iter().filter(|leaf| (leaf.function, leaf.index) == (function, index));
        let leaf = found.next().unwrap();
        assert!(found.next().is_none(), "one leaf {function:#x}.{index}");
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    }

    #[test]
    fn the_place_of_a_vcpu() {
        let supported = [
            leaf(0, 0, 0x1f, 0, 0, 0),
            leaf(1, 0, 0xabc, 0xff10_0800, 1 << 5 | 1, 1),
            leaf(4, 0, 0xfc00_4121, 7, 0, 0), // level 1
            leaf(4, 1, 0xfc1f_c163, 7, 0, 0), // level 3
            leaf(4, 2, 0, 0, 0, 0),
            leaf(7, 0, 0, 0, 1 << 5 | 1 << 4, 0),
            leaf(0xa, 0, 8, 8, 8, 8),
            leaf(0xb, 0, 9, 9, 9, 9),
            leaf(0x8000_0001, 0, 0, 0, 1 << 2 | 1 << 23 | 1, 0),
            leaf(0x8000_0008, 0, 0x3030, 0, 0x7_f07f, 0),
            leaf(0x8000_001e, 0, 9, 9, 9, 9),
        ];
        let leaves = of_vcpu(&supported, 4, 5, true);
        assert_eq!(find(&leaves, 1, 0), [0xabc, 0x0408_0800, 1 << 31 | 1 << 24 | 1 << 21 | 1, 1 << 28 | 1]);
        assert_eq!(find(&leaves, 4, 0)[0], 7 << 26 | 0x121);
        assert_eq!(find(&leaves, 4, 1)[0], 7 << 26 | 7 << 14 | 0x163);
        assert_eq!(find(&leaves, 4, 2)[0], 0, "the end of the list stays the end");
        assert_eq!(find(&leaves, 7, 0)[2], 1 << 4);
        assert_eq!(find(&leaves, 0xa, 0), [0; 4]);
        for function in [0xb, 0x1f] {
            assert_eq!(find(&leaves, function, 0), [0, 1, 0x100, 4]);
            assert_eq!(find(&leaves, function, 1), [3, 5, 0x201, 4]);
            assert_eq!(find(&leaves, function, 2), [0, 0, 2, 4]);
        }
        assert_eq!(find(&leaves, 0x8000_0001, 0)[2], 1 << 1 | 1);
        assert_eq!(find(&leaves, 0x8000_0008, 0)[2], 0x7_3004);
        assert_eq!(find(&leaves, 0x8000_001e, 0), [4, 4, 0, 9]);
    }

    #[test]
    fn one_vcpu() {
        let supported =
            [leaf(0, 0, 0xd, 0, 0, 0), leaf(1, 0, 0, 0, 0, 1 << 28), leaf(0x8000_0001, 0, 0, 0, 2, 0)];
        let leaves = of_vcpu(&supported, 0, 1, false);
        assert_eq!(find(&leaves, 1, 0), [0, 1 << 16, 1 << 31 | 1 << 21, 0]);
        assert_eq!(find(&leaves, 0x8000_0001, 0)[2], 0);
        assert!(leaves.iter().all(|leaf| leaf.function != 0x1f), "a leaf beyond the highest one");
    }
}
