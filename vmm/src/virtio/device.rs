//! What a virtio device is to the rest of the machine.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use virtio_queue::Queue;

use super::{Active, ConfigSpace};
use crate::devices::{Setting, State};

/// A virtio device.
///
/// It lives on a [`Worker`](crate::devices::Worker) thread, which alone calls it: no locks, and nothing of it runs while the
/// worker is parked. The transport keeps the registers, reads and writes the [`ConfigSpace`], owns the queues until the
/// driver is ready, and moves them in with [`activate`](Self::activate).
///
/// # Life
///
/// ```text
///   new ──activate──▶ active ──deactivate──▶ new        (DRIVER_OK, and a reset by the driver)
///   active ──pause──▶ paused ──resume──▶ active         (all vCPUs are paused before, and resumed after)
///   paused: save any number of times; the device stays as it is
///   new ──restore──▶ paused ──resume──▶ active          (in another process, with the same memory)
/// ```
///
/// - `pause` returns when nothing is in flight: no request is half done, and data that the driver was told is written has
///   been handed to the host's kernel.
/// - `save` gives all state that the guest can observe, as a plain serde struct. Saved, restored and saved again gives the same state.
/// - `resume` looks at every queue, as if it had been notified: a notification may have been lost with the old process.
/// - Host connections are not state: after a restore the peer learns that they are gone.
pub trait Device: Send {
    /// What the driver is told of the device.
    fn info(&self) -> Info;

    /// The configuration space; the same one for the whole life of the device.
    fn config(&self) -> Arc<ConfigSpace>;

    /// The driver is ready. Queues may hold buffers already: the worker calls [`notified`](Self::notified) for each one
    /// afterwards.
    fn activate(&mut self, active: Active, events: &Events<'_>) -> Result<(), DeviceError>;

    /// A reset by the driver: forgets its queues and all state that belongs to them. Buffers are not touched after it returns.
    fn deactivate(&mut self, events: &Events<'_>);

    /// The driver has made buffers available in `queue`.
    ///
    /// # Errors
    /// The driver has broken the queue: the device is deactivated and the driver told that it needs a reset.
    fn notified(&mut self, queue: usize, events: &Events<'_>) -> Result<(), DeviceError>;

    /// A descriptor that the device has added to `events` under `token` is ready.
    ///
    /// # Errors
    /// As for [`notified`](Self::notified).
    fn ready(
        &mut self,
        token: u32,
        flags: epoll::EventFlags,
        events: &Events<'_>,
    ) -> Result<(), DeviceError> {
        let _ = (token, flags, events);
        Ok(())
    }

    /// Something about the device is to be another from now on; also while it is paused or not active. The worker calls
    /// [`notified`](Self::notified) for each queue afterwards, or at the next [`resume`](Self::resume).
    ///
    /// # Errors
    /// The device has no such setting, or it cannot be changed.
    fn configure(&mut self, setting: Setting, events: &Events<'_>) -> Result<(), DeviceError> {
        let _ = (setting, events);
        Err(DeviceError::NoSetting)
    }

    /// Finishes or gives up what is in flight.
    ///
    /// # Errors
    /// The host failed, for example to write to the disk.
    fn pause(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Goes on after a pause or a restore, before the worker calls [`notified`](Self::notified) for each queue.
    fn resume(&mut self, events: &Events<'_>) -> Result<(), DeviceError> {
        let _ = events;
        Ok(())
    }

    /// The state of the paused device and of its queues; no queues when it is not active.
    fn save(&self) -> Saved;

    /// Takes over what [`save`](Self::save) gave. `active` is there when the saved device was active; its queues are the saved ones.
    ///
    /// # Errors
    /// The state is of another device or is not sound: it may come from a damaged file.
    fn restore(
        &mut self,
        state: State,
        active: Option<Active>,
        events: &Events<'_>,
    ) -> Result<(), DeviceError>;
}

/// What the driver is told of a device.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Device ID (section 5), for example 2 for a block device.
    pub id: u32,
    /// For logs, metrics and errors.
    pub name: &'static str,
    /// The feature bits offered, without those of the transport (VERSION_1 is added there).
    pub features: u64,
    /// The largest size of each queue; powers of two.
    pub queues: &'static [u16],
}

/// What [`Device::save`] gives.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Saved {
    /// The device's own state.
    pub device: State,
    /// The queues of an active device, in order.
    pub queues: Option<Vec<QueueState>>,
}

/// A queue as it is saved: positions are modulo 2^16, addresses guest physical.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of virtio_queue::QueueState, which has no serde")]
pub struct QueueState {
    pub max_size: u16,
    pub size: u16,
    pub ready: bool,
    pub event_idx: bool,
    pub next_avail: u16,
    pub next_used: u16,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

impl From<&Queue> for QueueState {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl TryFrom<QueueState> for Queue {
    type Error = virtio_queue::Error;

    fn try_from(state: QueueState) -> Result<Self, Self::Error> {
        virtio_queue::QueueState {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
        .try_into()
    }
}

/// The descriptors of one device among those that its worker waits for.
#[derive(Clone, Copy, Debug)]
pub struct Events<'a> {
    epoll: &'a rustix::fd::OwnedFd,
    device: u32,
}

impl<'a> Events<'a> {
    /// The descriptors of the device with index `device` in `epoll`.
    pub(crate) fn new(epoll: &'a rustix::fd::OwnedFd, device: u32) -> Self {
        Self { epoll, device }
    }

    /// Calls [`Device::ready`] with `token` when one of `flags` is true of `fd`.
    pub fn add(&self, fd: impl AsFd, token: u32, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(self.epoll, fd, self.data(token), flags)?)
    }

    /// Waits for other flags.
    pub fn modify(&self, fd: impl AsFd, token: u32, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::modify(self.epoll, fd, self.data(token), flags)?)
    }

    /// No longer waits for `fd`.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(self.epoll, fd)?)
    }

    fn data(&self, token: u32) -> epoll::EventData {
        epoll::EventData::new_u64(u64::from(self.device) << 32 | u64::from(token))
    }
}

/// What ends the work of a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver has broken a queue.
    #[error("the driver broke a queue")]
    Queue(#[from] virtio_queue::Error),
    /// The driver has sent what the specification forbids.
    #[error("the driver sent {0}")]
    Driver(&'static str),
    /// The host failed.
    #[error("{what}")]
    Host {
        /// What the device was doing.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It has no such setting.
    #[error("the device has no such setting")]
    NoSetting,
    /// A state that is not this device's, or that is not sound.
    #[error("the saved state of {device} cannot be used: {why}")]
    State {
        /// The device's name.
        device: &'static str,
        /// What is wrong with it.
        why: String,
    },
}
