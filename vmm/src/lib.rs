//! One microVM in one process: what `voidrun vmm` runs.
//!
//! The process opens no path. A [`spec::MachineSpec`] and the descriptors that it names come from whoever starts it, and
//! from then on it speaks over its control socket and its vsock socket alone.

pub mod arch;
pub mod control;
pub mod devices;
pub mod exit;
pub mod jail;
mod machine;
pub mod memory;
pub mod probe;
pub mod process;
pub mod snapshot;
pub mod sparse;
pub mod spec;
mod vectored;
pub mod virtio;

/// Guest RAM. A clone refers to the same memory.
pub type GuestMemory = std::sync::Arc<vm_memory::GuestMemoryMmap<()>>;
