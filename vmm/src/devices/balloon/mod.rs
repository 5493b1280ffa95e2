//! The memory balloon device (section 5.5), for free page reporting alone: the guest tells which of its pages nobody uses, and the
//! host has them until the guest touches them again.
//!
//! Nobody asks the guest for pages: `num_pages` stays 0. Pages of a driver that gives or takes some all the same stay the
//! guest's, and `actual` stays 0 as well.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::State;
use crate::GuestMemory;
use crate::memory::{self, Mapped};
use crate::virtio::{Active, Chain, ConfigSpace, Device, DeviceError, Events, Info, Saved};

/// VIRTIO_BALLOON_F_REPORTING (section 5.5.3).
const F_REPORTING: u32 = 5;
/// Behind those to inflate and to deflate, which Linux wants to find. The standard (section 5.5.2) counts two more before it, which
/// are not there; drivers and devices count those that are.
const REPORTING: usize = 2;
/// Linux refuses a shorter queue for its reports, which are of up to so many ranges.
const RANGES: u16 = 32;
/// `num_pages` and `actual`, 32 bits each (section 5.5.4).
const CONFIG: [u8; 8] = [0; 8];

/// A virtio memory balloon device.
#[derive(Debug)]
pub struct Balloon {
    config: Arc<ConfigSpace>,
    active: Option<Active>,
    /// Which pages of the RAM were mapped from files.
    mapped: Option<Arc<Mapped>>,
}

/// Nothing: what was given back is what the RAM has not.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {}

impl Balloon {
    /// A device that is not active, of a machine that boots.
    pub fn new() -> Self {
        Self::of(None)
    }

    /// Of a machine whose RAM is mapped from files in part.
    pub(crate) fn of(mapped: Option<Arc<Mapped>>) -> Self {
        Self { config: Arc::new(ConfigSpace::read_only(CONFIG.to_vec())), active: None, mapped }
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Balloon {
    fn info(&self) -> Info {
        let features = 1 << F_REPORTING | 1 << VIRTIO_RING_F_EVENT_IDX;
        Info { id: VIRTIO_ID_BALLOON, name: "balloon", features, queues: &[8, 8, RANGES] }
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

    fn notified(&mut self, queue: usize, _: &Events<'_>) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        match queue {
            REPORTING => {
                active.drain(queue, |memory, chain| give_back(memory, chain, self.mapped.as_deref()))
            }
            _ => active.drain(queue, |_, _| Ok(0)),
        }
    }

    fn save(&self) -> Saved {
        Saved { device: State::Balloon(BalloonState {}), queues: self.active.as_ref().map(Active::save) }
    }

    fn restore(&mut self, state: State, active: Option<Active>, _: &Events<'_>) -> Result<(), DeviceError> {
        let State::Balloon(BalloonState {}) = state else {
            return Err(DeviceError::State { device: "balloon", why: "it is of another device".to_owned() });
        };
        self.active = active;
        Ok(())
    }
}

/// Gives the pages of a report back. Nothing is written to them by the device's account, as the standard has it (section 5.5.6.7).
#[expect(clippy::unnecessary_wraps, reason = "what a queue is drained with")]
fn give_back(memory: &GuestMemory, chain: Chain, mapped: Option<&Mapped>) -> Result<u32, DeviceError> {
    // More ranges than Linux reports at once stay as they are: the worker has other devices.
    for range in chain.writable().take(RANGES.into()) {
        // What the host's kernel does not take stays as it is, too.
        let _ = memory::give_back(memory, range.addr().0, range.len().into(), mapped);
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
