//! A virtual machine in KVM, and the state that belongs to none of its vCPUs.

use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_clock_data, kvm_cpuid_entry2,
    kvm_enable_cap, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{ArchError, cpuid, layout, msr, vcpu};
use crate::GuestMemory;
use crate::memory;
use crate::spec::Cpus;

/// A virtual machine with RAM, interrupt controllers and a PIT, and what this host's KVM can do.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    /// KVM_GET_SUPPORTED_CPUID: asked for once, since KVM takes 0.4 ms for it.
    supported_cpuid: Vec<kvm_cpuid_entry2>,
    saved_msrs: Vec<u32>,
    tsc_deadline: bool,
    xsave_size: Option<usize>,
    xcrs: bool,
    /// KVM reads and writes the RAM for as long as `fd` is open.
    _memory: GuestMemory,
}

/// Takes over an open `/dev/kvm`.
///
/// # Errors
/// It is no `/dev/kvm`, or one that is too old.
pub fn kvm(fd: OwnedFd) -> Result<Kvm, ArchError> {
    // SAFETY: the descriptor is open and owned by nobody else.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    match kvm.get_api_version() {
        12 => {}
        other => return Err(ArchError::Version(other)),
    }
    let needed = [
        (Cap::Irqchip, "an interrupt controller"),
        (Cap::Pit2, "a PIT"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::ImmediateExit, "immediate_exit"),
        (Cap::TscDeadlineTimer, "the TSC deadline timer"),
        (Cap::UserMemory, "memory slots"),
        (Cap::SetTssAddr, "a place for the TSS"),
        (Cap::ExtCpuid, "CPUID"),
        (Cap::AdjustClock, "an adjustable clock"),
        (Cap::VcpuEvents, "pending events"),
        (Cap::Debugregs, "debug registers"),
        (Cap::GetTscKhz, "the TSC's frequency"),
    ];
    match needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, what)) => Err(ArchError::Lacks(what)),
        None => Ok(kvm),
    }
}

impl Vm {
    /// Makes a machine with `memory` as its RAM.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn new(kvm: &Kvm, memory: &GuestMemory) -> Result<Self, ArchError> {
        let fd = kvm.create_vm().map_err(ArchError::kvm("creating a machine"))?;
        // The RAM first: each change of the memory slots waits for all readers of the old ones, which takes milliseconds once
        // interrupt controllers and PIT are there.
        for slot in memory::slots(memory) {
            // SAFETY: the slot is memory of this process that `Vm` keeps for as long as the machine exists.
            unsafe { fd.set_user_memory_region(slot) }
                .map_err(ArchError::kvm("giving the machine its RAM"))?;
        }
        // Used on Intel CPUs without unrestricted guests alone; others take it and do nothing. Before the first vCPU.
        fd.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(ArchError::kvm("placing the identity map"))?;
        fd.set_tss_address(layout::TSS as usize).map_err(ArchError::kvm("placing the TSS"))?;
        disable_pmu(&fd)?;
        fd.create_irq_chip().map_err(ArchError::kvm("creating the interrupt controllers"))?;
        // Without the dummy, each access to the speaker's port would leave KVM.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(ArchError::kvm("creating the PIT"))?;
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ArchError::kvm("asking for CPUID"))?
            .as_slice()
            .to_vec();
        let tsc_deadline = fd.check_extension(Cap::TscDeadlineTimer);
        let xcrs = fd.check_extension(Cap::Xcrs);
        let xsave_size = xsave_size(&fd);
        let saved_msrs = msr::saved(kvm)?;
        Ok(Self { fd, supported_cpuid, saved_msrs, tsc_deadline, xsave_size, xcrs, _memory: memory.clone() })
    }

    /// For eventfds and the like.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Makes vCPU `id` of `count`, counted from 0, with CPUID and MSRs as they are at boot.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn create_vcpu(&self, id: u8, count: Cpus) -> Result<VcpuFd, ArchError> {
        let fd = self.create_bare_vcpu(id)?;
        // CPUID first: KVM lets us set the MSRs that it allows.
        let leaves = cpuid::of_vcpu(&self.supported_cpuid, id, count.get(), self.tsc_deadline);
        vcpu::set_cpuid(&fd, &leaves)?;
        msr::set_at_boot(&fd)?;
        Ok(fd)
    }

    /// Makes vCPU `id` as KVM makes it, for [`VcpuState::restore`](super::VcpuState::restore).
    ///
    /// # Errors
    /// KVM refuses.
    pub fn create_bare_vcpu(&self, id: u8) -> Result<VcpuFd, ArchError> {
        self.fd.create_vcpu(id.into()).map_err(ArchError::kvm("creating a vCPU"))
    }

    /// Tells the guest that its VM generation ID has changed, by the interrupt of the ACPI event device.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn announce_generation_id(&self) -> Result<(), ArchError> {
        [true, false].into_iter().try_for_each(|active| {
            self.fd
                .set_irq_line(layout::EVENT_GSI, active)
                .map_err(ArchError::kvm("raising the event device's interrupt"))
        })
    }

    /// CPUID as `vcpu`, which is given it, has it when it boots. KVM may make more of it than it says that it supports, as one does
    /// that runs a guest's programs without the CPU's virtualisation, where CPUID is the host's.
    pub(super) fn cpuid_at_boot(&self, vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, ArchError> {
        vcpu::set_cpuid(vcpu, &cpuid::of_vcpu(&self.supported_cpuid, 0, 1, self.tsc_deadline))?;
        vcpu::get_cpuid(vcpu)
    }

    pub(super) fn supported_cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.supported_cpuid
    }

    pub(super) fn saved_msrs(&self) -> &[u32] {
        &self.saved_msrs
    }

    /// The size of the XSAVE area in bytes, on a host that has one.
    pub(super) fn xsave_size(&self) -> Option<usize> {
        self.xsave_size
    }

    pub(super) fn has_xcrs(&self) -> bool {
        self.xcrs
    }
}

/// A guest gets no performance counters: they show more of the host than it should see. Kernels before 5.18 cannot switch them
/// off; there CPUID alone hides them.
fn disable_pmu(fd: &VmFd) -> Result<(), ArchError> {
    let disable = u64::from(KVM_PMU_CAP_DISABLE);
    if fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) as u64 & disable == 0 {
        return Ok(());
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    cap.args[0] = disable;
    fd.enable_cap(&cap).map_err(ArchError::kvm("switching performance counters off"))
}

/// KVM before 5.17 knows only the fixed size, for which it has the same two requests.
fn xsave_size(fd: &VmFd) -> Option<usize> {
    fd.check_extension(Cap::Xsave).then(|| {
        let size = fd.check_extension_int(Cap::Xsave2);
        usize::try_from(size).unwrap_or(0).max(size_of::<kvm_bindings::kvm_xsave>())
    })
}

/// The state of the devices that KVM keeps for the machine: interrupt controllers, PIT, kvmclock.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
}

impl VmState {
    /// Saves the state of `vm`, all vCPUs of which have been saved.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(vm: &Vm) -> Result<Self, ArchError> {
        let irqchip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.fd.get_irqchip(&mut chip).map_err(ArchError::kvm("reading an interrupt controller"))?;
            Ok::<_, ArchError>(chip)
        };
        let pit = vm.fd.get_pit2().map_err(ArchError::kvm("reading the PIT"))?;
        let mut clock = vm.fd.get_clock().map_err(ArchError::kvm("reading the clock"))?;
        // Without flags the clock goes on where it stood. With KVM_CLOCK_REALTIME it would jump ahead by the time in which the
        // machine did not exist: the agent sets the time of day, and nothing else of the guest is to notice.
        clock.flags = 0;
        Ok(Self {
            pit,
            clock,
            pic_master: irqchip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: irqchip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: irqchip(KVM_IRQCHIP_IOAPIC)?,
        })
    }

    /// Restores a new `vm`, all vCPUs of which have been restored.
    ///
    /// # Errors
    /// KVM refuses: the state may be damaged.
    pub fn restore(&self, vm: &Vm) -> Result<(), ArchError> {
        vm.fd.set_pit2(&self.pit).map_err(ArchError::kvm("setting the PIT"))?;
        vm.fd.set_clock(&self.clock).map_err(ArchError::kvm("setting the clock"))?;
        for chip in [&self.pic_master, &self.pic_slave, &self.ioapic] {
            vm.fd.set_irqchip(chip).map_err(ArchError::kvm("setting an interrupt controller"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
