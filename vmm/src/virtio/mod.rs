//! Virtio over MMIO (Virtual I/O Device 1.2): the device trait, what it is given, and the transport.

mod active;
mod config;
mod device;
mod interrupt;
#[cfg(test)]
mod tests;
mod transport;

pub use active::{Active, Chain};
pub use config::ConfigSpace;
pub use device::{Device, DeviceError, Events, Info, QueueState, Saved};
pub use interrupt::{Counters, Interrupt};
pub use transport::{Face, Place, Transport, TransportState};
