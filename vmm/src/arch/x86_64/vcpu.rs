//! The state of a vCPU, as it is saved.

use std::io;

use kvm_bindings::{
    CpuId, KVMIO, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_pre_fault_memory, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::vm::Vm;
use super::{ArchError, features, msr};

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Gives the guest `len` bytes of its RAM at `address`, as far as this process has them, so that no vCPU leaves the guest for their sake.
/// `vcpu` has its state, and does not run. A page that is a file's still costs more than without: the guest gets it for reading alone.
///
/// # Errors
/// KVM refuses, as it does before Linux 6.11 and without nested paging.
pub(crate) fn pre_fault(vcpu: &VcpuFd, address: u64, len: u64) -> io::Result<()> {
    let mut left = kvm_pre_fault_memory { gpa: address, size: len, ..Default::default() };
    // KVM takes from the range what is done, also where it comes back early.
    while left.size > 0 {
        // SAFETY: KVM reads and writes this one structure.
        if unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut left) } < 0 {
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// All that KVM keeps for a vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: Fpu,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// The registers of FPU and vector units.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Fpu {
    /// Of a host without XSAVE.
    Legacy(Box<LegacyFpu>),
    /// The XSAVE area of KVM_GET_XSAVE2, in 32-bit words.
    Xsave(Vec<u32>),
}

/// `kvm_fpu`, which has no serde.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LegacyFpu {
    fpr: [[u8; 16]; 8],
    fcw: u16,
    fsw: u16,
    ftwx: u8,
    last_opcode: u16,
    last_ip: u64,
    last_dp: u64,
    xmm: [[u8; 16]; 16],
    mxcsr: u32,
}

impl VcpuState {
    /// Saves a vCPU of `vm` that does not run, and whose last exit has been answered completely (KVM_RUN with immediate_exit).
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(vm: &Vm, vcpu: &VcpuFd) -> Result<Self, ArchError> {
        // MP_STATE first, since reading it lets KVM take in an INIT or SIPI that is on its way and changes registers; VCPU_EVENTS
        // last, since reading the others may queue or drop an event.
        let mp_state = vcpu.get_mp_state().map_err(ArchError::kvm("reading the multiprocessing state"))?;
        let regs = vcpu.get_regs().map_err(ArchError::kvm("reading registers"))?;
        let sregs = vcpu.get_sregs().map_err(ArchError::kvm("reading system registers"))?;
        let fpu = save_fpu(vm, vcpu)?;
        let xcrs = vm
            .has_xcrs()
            .then(|| vcpu.get_xcrs().map_err(ArchError::kvm("reading extended control registers")))
            .transpose()?;
        let debug_regs = vcpu.get_debug_regs().map_err(ArchError::kvm("reading debug registers"))?;
        let lapic = vcpu.get_lapic().map_err(ArchError::kvm("reading the LAPIC"))?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(ArchError::kvm("reading the TSC's frequency"))?;
        let cpuid = get_cpuid(vcpu)?;
        let msrs = msr::get(vcpu, vm.saved_msrs())?;
        let events = vcpu.get_vcpu_events().map_err(ArchError::kvm("reading pending events"))?;
        Ok(Self { cpuid, tsc_khz, mp_state, regs, sregs, fpu, xcrs, debug_regs, lapic, msrs, events })
    }

    /// Restores a new vCPU of `vm`, made with [`Vm::create_bare_vcpu`].
    ///
    /// # Errors
    /// The state is damaged, or this host cannot take it: it lacks what the guest knows its CPU to have.
    pub fn restore(&self, vm: &Vm, vcpu: &VcpuFd) -> Result<(), ArchError> {
        // Asked for what this vCPU would have only where the answer that is there already will not do.
        features::check(&self.cpuid, vm.supported_cpuid())
            .or_else(|_| features::check(&self.cpuid, &vm.cpuid_at_boot(vcpu)?))?;
        if vcpu.get_tsc_khz().map_err(ArchError::kvm("reading the TSC's frequency"))? != self.tsc_khz {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(ArchError::kvm("setting the TSC's frequency"))?;
        }
        // CPUID decides which registers, bits and MSRs KVM lets us set.
        set_cpuid(vcpu, &self.cpuid)?;
        vcpu.set_mp_state(self.mp_state).map_err(ArchError::kvm("setting the multiprocessing state"))?;
        vcpu.set_regs(&self.regs).map_err(ArchError::kvm("setting registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(ArchError::kvm("setting system registers"))?;
        restore_fpu(vm, vcpu, &self.fpu)?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs).map_err(ArchError::kvm("setting extended control registers"))?;
        }
        vcpu.set_debug_regs(&self.debug_regs).map_err(ArchError::kvm("setting debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(ArchError::kvm("setting the LAPIC"))?;
        // The deadline is armed against a TSC and a LAPIC timer mode that must be there before.
        let (deadline, others): (Vec<_>, Vec<_>) =
            self.msrs.iter().copied().partition(|msr| msr.index == msr::TSC_DEADLINE);
        msr::set(vcpu, &others)?;
        msr::set(vcpu, &deadline)?;
        vcpu.set_vcpu_events(&self.events).map_err(ArchError::kvm("setting pending events"))?;
        // Tells the guest's watchdogs of the pause; refused when the guest has no kvmclock.
        match vcpu.kvmclock_ctrl() {
            Err(error) if error.errno() != libc::EINVAL => {
                Err(ArchError::Kvm { what: "telling the guest of the pause", source: error })
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn get_cpuid(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, ArchError> {
    let cpuid =
        vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(ArchError::kvm("reading CPUID"))?;
    Ok(cpuid.as_slice().to_vec())
}

pub(super) fn set_cpuid(vcpu: &VcpuFd, leaves: &[kvm_cpuid_entry2]) -> Result<(), ArchError> {
    let cpuid = CpuId::from_entries(leaves).map_err(|_| ArchError::State("more than 256 CPUID leaves"))?;
    vcpu.set_cpuid2(&cpuid).map_err(ArchError::kvm("setting CPUID"))
}

fn save_fpu(vm: &Vm, vcpu: &VcpuFd) -> Result<Fpu, ArchError> {
    let Some(size) = vm.xsave_size() else {
        let fpu = vcpu.get_fpu().map_err(ArchError::kvm("reading FPU registers"))?;
        return Ok(Fpu::Legacy(Box::new(fpu.into())));
    };
    let mut xsave = new_xsave(size)?;
    // SAFETY: `xsave` has the size that KVM told for KVM_CAP_XSAVE2.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(ArchError::kvm("reading the XSAVE area"))?;
    let head = &xsave.as_fam_struct_ref().xsave.region;
    Ok(Fpu::Xsave(head.iter().chain(xsave.as_slice()).copied().collect()))
}

fn restore_fpu(vm: &Vm, vcpu: &VcpuFd, fpu: &Fpu) -> Result<(), ArchError> {
    match (fpu, vm.xsave_size()) {
        (Fpu::Legacy(fpu), _) => {
            vcpu.set_fpu(&fpu.as_ref().into()).map_err(ArchError::kvm("setting FPU registers"))
        }
        (Fpu::Xsave(words), Some(size)) if words.len() * 4 == size => {
            let mut xsave = new_xsave(size)?;
            let (head, tail) = words.split_at(XSAVE_HEAD);
            xsave.as_mut_slice().copy_from_slice(tail);
            // SAFETY: the length of the flexible array, which is what must not change, stays.
            unsafe { xsave.as_mut_fam_struct() }.xsave.region.copy_from_slice(head);
            // SAFETY: `xsave` has the size that KVM told for KVM_CAP_XSAVE2.
            unsafe { vcpu.set_xsave2(&xsave) }.map_err(ArchError::kvm("setting the XSAVE area"))
        }
        (Fpu::Xsave(_), _) => Err(ArchError::State("its XSAVE area is not this host's")),
    }
}

/// How many words the fixed part of the XSAVE area has.
const XSAVE_HEAD: usize = size_of::<kvm_xsave>() / 4;

/// An empty XSAVE area of `size` bytes.
fn new_xsave(size: usize) -> Result<Xsave, ArchError> {
    Xsave::new((size / 4).saturating_sub(XSAVE_HEAD))
        .map_err(|_| ArchError::State("its XSAVE area is too large"))
}

impl From<kvm_bindings::kvm_fpu> for LegacyFpu {
    fn from(fpu: kvm_bindings::kvm_fpu) -> Self {
        Self {
            fpr: fpu.fpr,
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            ftwx: fpu.ftwx,
            last_opcode: fpu.last_opcode,
            last_ip: fpu.last_ip,
            last_dp: fpu.last_dp,
            xmm: fpu.xmm,
            mxcsr: fpu.mxcsr,
        }
    }
}

impl From<&LegacyFpu> for kvm_bindings::kvm_fpu {
    fn from(fpu: &LegacyFpu) -> Self {
        Self {
            fpr: fpu.fpr,
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            ftwx: fpu.ftwx,
            last_opcode: fpu.last_opcode,
            last_ip: fpu.last_ip,
            last_dp: fpu.last_dp,
            xmm: fpu.xmm,
            mxcsr: fpu.mxcsr,
            ..Default::default()
        }
    }
}
