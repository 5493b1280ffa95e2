//! The configuration space of a device: read and written by the driver on a vCPU's thread, by the device on its own.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// The bytes of a device's configuration, little-endian, with the generation that tells the driver of changes
/// (section 2.5).
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Mutex<Vec<u8>>,
    /// What the driver may write.
    writable: Range<usize>,
    generation: AtomicU32,
}

impl ConfigSpace {
    /// A configuration that the driver may only read.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self::new(bytes, 0..0)
    }

    /// A configuration of which the driver may write the bytes in `writable`.
    pub fn new(bytes: Vec<u8>, writable: Range<usize>) -> Self {
        Self { bytes: Mutex::new(bytes), writable, generation: AtomicU32::new(0) }
    }

    /// Fills `data` from `offset` on. What lies beyond the end is zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(rest) = bytes.get(offset..) {
            let len = rest.len().min(data.len());
            data[..len].copy_from_slice(&rest[..len]);
        }
    }

    /// A write of the driver. What is not writable as a whole is left as it is.
    pub fn write_from_driver(&self, offset: u64, data: &[u8]) {
        let Ok(start) = usize::try_from(offset) else { return };
        let end = start.saturating_add(data.len());
        if start < self.writable.start || end > self.writable.end {
            return;
        }
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = bytes.get_mut(start..end) {
            place.copy_from_slice(data);
        }
    }

    /// A change by the device, which raises the configuration interrupt afterwards.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut bytes);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Changes with each [`update`](Self::update).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }
}
