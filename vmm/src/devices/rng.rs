//! The entropy device (section 5.4): random bytes of the host's kernel.

use std::io::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::State;
use crate::GuestMemory;
use crate::virtio::{Active, Chain, ConfigSpace, Device, DeviceError, Events, Info, Saved};

const QUEUE: usize = 0;
/// At most so many bytes for one buffer: the driver asks again, and a huge buffer costs no more than a small one.
const LIMIT: usize = 64 << 10;

/// A virtio entropy device.
#[derive(Debug)]
pub struct Rng {
    config: Arc<ConfigSpace>,
    active: Option<Active>,
}

/// Nothing: what it gave is the guest's, and what it will give is the host's.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RngState {}

impl Rng {
    /// A device that is not active.
    pub fn new() -> Self {
        Self { config: Arc::new(ConfigSpace::read_only(Vec::new())), active: None }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Rng {
    fn info(&self) -> Info {
        Info { id: VIRTIO_ID_RNG, name: "rng", features: 1 << VIRTIO_RING_F_EVENT_IDX, queues: &[64] }
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, active: Active, _: &Events<'_>) -> Result<(), DeviceError> {
        self.active = Some(active);
        Ok(())
    }

    fn deactivate(&mut self, _: &Events<'_>) {
        self.active = None;
    }

    fn notified(&mut self, _: usize, _: &Events<'_>) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.drain(QUEUE, fill)
    }

    fn save(&self) -> Saved {
        Saved { device: State::Rng(RngState {}), queues: self.active.as_ref().map(Active::save) }
    }

    fn restore(&mut self, state: State, active: Option<Active>, _: &Events<'_>) -> Result<(), DeviceError> {
        let State::Rng(RngState {}) = state else {
            return Err(DeviceError::State { device: "rng", why: "it is of another device".to_owned() });
        };
        self.active = active;
        Ok(())
    }
}

/// Fills the writable part of `chain`, up to [`LIMIT`] bytes, and tells how many they are.
fn fill(memory: &GuestMemory, chain: Chain) -> Result<u32, DeviceError> {
    let mut writer = chain.writer(memory)?;
    let mut left = writer.available_bytes().min(LIMIT);
    let mut bytes = [0; 256];
    let mut written = 0;
    while left > 0 {
        let part = left.min(bytes.len());
        let host = |source| DeviceError::Host { what: "reading random bytes", source };
        // Up to 256 bytes are given whole (random(7)).
        rustix::rand::getrandom(&mut bytes[..part], rustix::rand::GetRandomFlags::empty())
            .map_err(|e| host(e.into()))?;
        writer.write_all(&bytes[..part]).map_err(host)?;
        left -= part;
        written += part as u32;
    }
    Ok(written)
}
