//! What is at guest physical addresses that are no RAM: the virtio devices, one page each.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ring::Ring;
use crate::arch::x86_64::layout;
use crate::virtio::{DeviceError, Transport, TransportState};

/// The virtio devices by address.
#[derive(Debug)]
pub(crate) struct Bus {
    transports: Vec<Mutex<Transport>>,
    ring: Option<Ring>,
}

impl Bus {
    /// The transports in the order of their addresses, and the writes to them that KVM keeps.
    pub(crate) fn new(transports: Vec<Transport>, ring: Option<Ring>) -> Self {
        Self { transports: transports.into_iter().map(Mutex::new).collect(), ring }
    }

    /// Carries out what the guest has written before it left KVM, which comes before what it has left for.
    pub(crate) fn catch_up(&self) {
        if let Some(ring) = &self.ring {
            ring.carry_out(|address, data| self.write(address, data));
        }
    }

    /// The guest reads. Where there is nothing it reads ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((mut transport, offset)) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((mut transport, offset)) = self.find(address) {
            transport.write(offset, data);
        }
    }

    /// The paused devices with their names, in the order of their addresses.
    pub(crate) fn save(&self) -> Result<Vec<(String, TransportState)>, DeviceError> {
        let saved = |transport: &Mutex<Transport>| {
            let transport = lock(transport);
            Ok((transport.info().name.to_owned(), transport.save()?))
        };
        self.transports.iter().map(saved).collect()
    }

    fn find(&self, address: u64) -> Option<(MutexGuard<'_, Transport>, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO)?;
        let transport = self.transports.get(usize::try_from(offset / layout::VIRTIO_MMIO_SIZE).ok()?)?;
        Some((lock(transport), offset % layout::VIRTIO_MMIO_SIZE))
    }
}

/// A vCPU's thread that panics ends the process, so that no transport is left half changed.
fn lock(transport: &Mutex<Transport>) -> MutexGuard<'_, Transport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}
