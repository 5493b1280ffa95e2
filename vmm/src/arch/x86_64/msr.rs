//! Model-specific registers: those that a vCPU starts with, and those that are saved.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::ArchError;

/// IA32_TSC_DEADLINE.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;

const NO_ROOM: &str = "a list of at most 256 MSRs";

/// What the firmware of a PC would have left, and the kernel relies on: system call registers that are 0, fast string
/// operations, and memory that is cached unless page tables say otherwise.
const AT_BOOT: [(u32, u64); 11] = [
    (0x174, 0),           // SYSENTER_CS
    (0x175, 0),           // SYSENTER_ESP
    (0x176, 0),           // SYSENTER_EIP
    (0xc000_0081, 0),     // STAR
    (0xc000_0082, 0),     // LSTAR
    (0xc000_0083, 0),     // CSTAR
    (0xc000_0084, 0),     // SYSCALL_MASK
    (0xc000_0102, 0),     // KERNEL_GS_BASE
    (0x10, 0),            // TSC
    (0x1a0, 1),           // MISC_ENABLE: fast strings
    (0x2ff, 1 << 11 | 6), // MTRRdefType: enabled, write-back
];

/// Gives a new vCPU the registers it starts with.
pub(super) fn set_at_boot(vcpu: &VcpuFd) -> Result<(), ArchError> {
    let entries = AT_BOOT.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    set(vcpu, &entries)
}

/// Which registers this host's KVM can save, without those of features that no guest of ours is offered.
pub(super) fn saved(kvm: &Kvm) -> Result<Vec<u32>, ArchError> {
    let list = kvm.get_msr_index_list().map_err(ArchError::kvm("listing MSRs"))?;
    Ok(list.as_slice().iter().copied().filter(|index| is_saved(*index)).collect())
}

fn is_saved(index: u32) -> bool {
    let hyper_v =
        (0x4000_0000..=0x4000_00ff).contains(&index) || (0x4000_0110..=0x4000_0118).contains(&index);
    let vmx = (0x480..=0x4ff).contains(&index);
    let pmu = matches!(index, 0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30b | 0x345 | 0x38d..=0x390 | 0x3f1 | 0x4c1..=0x4c8)
        || matches!(index, 0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b | 0xc000_0300..=0xc000_0303);
    !(hyper_v || vmx || pmu)
}

/// The values of the registers `indices` that this vCPU has.
pub(super) fn get(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, ArchError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> =
            part.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| ArchError::State(NO_ROOM))?;
        let read = vcpu.get_msrs(&mut msrs).map_err(ArchError::kvm("reading MSRs"))?;
        values.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first register that this vCPU's CPUID does not allow: there is nothing to save in it.
        rest = &rest[(read + usize::from(read < part.len()))..];
    }
    Ok(values)
}

/// Sets registers, in this order.
pub(super) fn set(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), ArchError> {
    for part in entries.chunks(KVM_MAX_MSR_ENTRIES) {
        let msrs = Msrs::from_entries(part).map_err(|_| ArchError::State(NO_ROOM))?;
        let written = vcpu.set_msrs(&msrs).map_err(ArchError::kvm("writing MSRs"))?;
        if let Some(refused) = part.get(written) {
            return Err(ArchError::Msr { index: refused.index, value: refused.data });
        }
    }
    Ok(())
}
