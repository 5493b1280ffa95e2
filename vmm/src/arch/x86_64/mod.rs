//! x86-64: how a machine is laid out, booted, and what of it KVM keeps.
//!
//! A machine is made in this order, which is also the fastest: RAM ([`memory::allocate`](crate::memory::allocate)), the
//! kernel in it ([`Kernel::load`]), [`Vm::new`], [`Vm::create_vcpu`] for each vCPU, and [`boot::prepare`] for the first one.

pub mod acpi;
pub mod boot;
mod cpuid;
mod error;
mod features;
mod kernel;
pub mod layout;
mod msr;
mod registers;
mod vcpu;
mod vm;

pub use error::ArchError;
pub use kernel::{Kernel, KernelError};
pub use layout::MmioSlot;
pub use vcpu::VcpuState;
pub(crate) use vcpu::pre_fault;
pub use vm::{Vm, VmState, kvm};
