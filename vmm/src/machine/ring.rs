//! Writes to registers of virtio devices that ask for nothing at once: KVM keeps them in a ring, and the guest runs on.
//!
//! A driver that sets a device up chooses features and tells where each queue is: nine such writes a queue, for each of which the guest
//! would leave KVM. They matter when a register is read or the status is written. For both the guest does leave KVM, and what is
//! in the ring is carried out before, in its order. A boot with five devices leaves it 110 times less often so.

use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::kvm_coalesced_mmio;
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use virtio_bindings::virtio_mmio as register;

use crate::arch::x86_64::{ArchError, MmioSlot};
use crate::memory::PAGE;

/// The selectors, the driver's features, and all of a queue. Among them are none of QueueNotify, InterruptACK and Status.
const REGISTERS: [Range<u32>; 2] = [
    register::VIRTIO_MMIO_DEVICE_FEATURES_SEL..register::VIRTIO_MMIO_QUEUE_READY + 4,
    register::VIRTIO_MMIO_QUEUE_DESC_LOW..register::VIRTIO_MMIO_QUEUE_USED_HIGH + 4,
];
/// The ring is a page, and holds no more writes.
const CAPACITY: usize = PAGE as usize / size_of::<kvm_coalesced_mmio>();

/// What KVM keeps of a machine's writes.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The ring is the machine's, and mapped by way of any vCPU: by this one's second descriptor, which runs nothing. Who has the lock
    /// carries out what there is, so that it keeps its order.
    mapped: Mutex<VcpuFd>,
}

impl Ring {
    /// For the devices at `slots`; none where this host's KVM has no ring.
    ///
    /// # Errors
    /// KVM refuses, or the process has no descriptors left.
    pub(crate) fn new(vm: &VmFd, vcpu: &VcpuFd, slots: &[MmioSlot]) -> Result<Option<Self>, ArchError> {
        let failed = || ArchError::kvm("keeping writes to registers");
        if !vm.check_extension(Cap::CoalescedMmio) {
            return Ok(None);
        }
        // SAFETY: the descriptor is open for as long as `vcpu` is borrowed.
        let second = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned();
        let second = second.map_err(|error| failed()(kvm_ioctls::Error::from(error)))?;
        // SAFETY: it is a vCPU's, and nobody else has it.
        let mut mapped = unsafe { vm.create_vcpu_from_rawfd(second.into_raw_fd()) }.map_err(failed())?;
        mapped.map_coalesced_mmio_ring().map_err(failed())?;
        for slot in slots {
            for Range { start, end } in REGISTERS {
                let address = IoEventAddress::Mmio(slot.base + u64::from(start));
                vm.register_coalesced_mmio(address, end - start).map_err(failed())?;
            }
        }
        Ok(Some(Self { mapped: Mutex::new(mapped) }))
    }

    /// Calls `write` with addresses and what was written there before the calling vCPU's thread returned from KVM.
    pub(crate) fn carry_out(&self, write: impl Fn(u64, &[u8])) {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        // No more than that: another vCPU may go on writing for ever.
        for _ in 0..CAPACITY {
            let Ok(Some(kept)) = mapped.coalesced_mmio_read() else { return };
            if let Some(data) = kept.data.get(..kept.len as usize) {
                write(kept.phys_addr, data);
            }
        }
    }
}
