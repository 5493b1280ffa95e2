//! The network device (section 5.1): frames between the guest and an [`Engine`] of the crate `net`.
//!
//! ```text
//!   guest ══ TX queue ═▶ scratch ─▶ Engine::receive        (a frame is copied out once, before anything looks at it)
//!   guest ◀═ RX queue ══ Receiver ◀── Engine::run ◀── Engine::fd
//! ```
//!
//! Everything is driven by events of the worker: a notification of a queue, or the engine's descriptor. Each is followed by one
//! pass of the engine, which does a bounded amount of work, and by at most one interrupt for both queues.
//!
//! A frame that makes no sense is dropped and counted; a queue that makes none ends the device, until its driver resets it.

mod header;
mod journal;
mod receive;

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use net::address::{GUEST_MAC, MTU};
use net::engine::{Counters, Engine};
use net::wire::{Features, MAX_FRAME, Offload, Wire};
use rustix::event::epoll::EventFlags;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT as _;
use vm_memory::{Bytes as _, GuestAddress};

use self::header::{Accepted, HEADER};
use self::receive::Receiver;
use super::{Setting, State};
use crate::GuestMemory;
use crate::virtio::{Active, Chain, ConfigSpace, Device, DeviceError, Events, Info, Saved};

pub use self::journal::{Denials, NumberedDenial};

const RX: usize = 0;
const TX: usize = 1;

const NETWORK: u32 = 0;

/// A frame lies in no more buffers than that: Linux uses up to 19.
const MAX_BUFFERS: usize = 64;
/// An Ethernet header and a packet of the wire's MTU.
const LONGEST_SEGMENT: usize = 14 + MTU as usize;

/// Where frames go: an [`Engine`], and in tests of the device alone what lets one look at them.
pub trait Network: Send {
    /// See [`Engine::fd`].
    fn fd(&self) -> BorrowedFd<'_>;
    /// See [`Engine::counters`].
    fn counters(&self) -> Arc<Counters>;
    /// See [`Engine::attach`].
    fn attach(&mut self, features: Features);
    /// See [`Engine::detach`].
    fn detach(&mut self);
    /// See [`Engine::receive`].
    fn receive(&mut self, frame: &[u8], offload: Offload);
    /// See [`Engine::run`].
    fn run(&mut self, wire: &mut dyn Wire);
    /// Something about it is to be another from now on.
    fn configure(&mut self, setting: Setting) -> Result<(), DeviceError>;
}

impl Network for Engine {
    fn fd(&self) -> BorrowedFd<'_> {
        Engine::fd(self)
    }

    fn counters(&self) -> Arc<Counters> {
        Engine::counters(self)
    }

    fn attach(&mut self, features: Features) {
        Engine::attach(self, features);
    }

    fn detach(&mut self) {
        Engine::detach(self);
    }

    fn receive(&mut self, frame: &[u8], offload: Offload) {
        Engine::receive(self, frame, offload);
    }

    fn run(&mut self, wire: &mut dyn Wire) {
        Engine::run(self, wire);
    }

    fn configure(&mut self, setting: Setting) -> Result<(), DeviceError> {
        match setting {
            Setting::Policy(policy) => self.set_policy(policy),
            Setting::Limits(limits) => self.set_limits(limits),
            Setting::Resolvers(resolvers) => self.set_resolvers(resolvers),
            Setting::Publish(_) | Setting::Unpublish(..) => return Err(DeviceError::NoSetting),
        }
        Ok(())
    }
}

/// A virtio network device.
pub struct Net<N = Engine> {
    config: Arc<ConfigSpace>,
    network: N,
    counters: Arc<Counters>,
    /// A frame of the guest. It has a bound, so that it is allocated once.
    scratch: Box<[u8]>,
    active: Option<Active>,
    /// The transmit queue has used buffers that the driver was not told of.
    sent: bool,
    /// The receive queue's position in the used ring when the driver was told last.
    told: u16,
}

/// Nothing: addresses are the same for all guests, and what the engine has is of connections, which no save outlives. A restored
/// guest's are reset when it speaks on them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NetState {}

impl<N: Network> Net<N> {
    /// A device that is not active, before `network`.
    pub fn new(network: N) -> Self {
        // mac, status, max_virtqueue_pairs, mtu; the two in the middle are of features that are not offered.
        let config = [&GUEST_MAC[..], &[0; 4], &MTU.to_le_bytes()].concat();
        Self {
            config: Arc::new(ConfigSpace::read_only(config)),
            counters: network.counters(),
            network,
            scratch: vec![0; MAX_FRAME].into(),
            active: None,
            sent: false,
            told: 0,
        }
    }

    /// What the network has done, for the whole of the device's life.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn attach(&mut self, active: Active, events: &Events<'_>) -> Result<(), DeviceError> {
        events
            .add(self.network.fd(), NETWORK, EventFlags::IN)
            .map_err(|source| DeviceError::Host { what: "waiting for the network", source })?;
        self.network.attach(Accepted(active.features).for_guest());
        self.told = active.queues[RX].next_used();
        self.sent = false;
        self.active = Some(active);
        Ok(())
    }

    /// Hands over what the driver sends, at most a queue full of it; for the rest the queue is notified again.
    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(active) = self.active.as_mut().filter(|active| active.queues[TX].ready()) else {
            return Ok(());
        };
        let memory = Arc::clone(&active.memory);
        let accepted = Accepted(active.features);
        let mut left = active.queues[TX].size();
        active.queues[TX].disable_notification(&*memory)?;
        loop {
            while left > 0
                && let Some(chain) = active.pop(TX)?
            {
                let head = chain.head_index();
                match copy_out(&memory, chain, &mut self.scratch)? {
                    Some((header, frame))
                        if let Some(offload) = header::from_guest(header, frame, accepted) =>
                    {
                        self.network.receive(frame, offload);
                    }
                    _ => drop_frames(&self.counters, 1),
                }
                active.push(TX, head, 0)?;
                self.sent = true;
                left -= 1;
            }
            let more = active.queues[TX].enable_notification(&*memory)?;
            if more && left == 0 {
                // Fails only when it is notified already.
                let _ = active.notifiers[TX].write(1);
            }
            if !more || left == 0 {
                return Ok(());
            }
        }
    }

    /// The driver has receive buffers, and need not tell so again until they run out.
    fn hush(&mut self) -> Result<(), DeviceError> {
        match &mut self.active {
            Some(active) if active.queues[RX].ready() => {
                Ok(active.queues[RX].disable_notification(&*active.memory)?)
            }
            _ => Ok(()),
        }
    }

    /// Lets the network do what it can, and tells the driver of used buffers, of both queues at once.
    fn pass(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let mut receiver = Receiver::new(active);
        self.network.run(&mut receiver);
        drop_frames(&self.counters, receiver.finish()?);
        let used = active.queues[RX].next_used();
        let of_rx =
            used != self.told && active.wants_interrupt(RX, std::mem::replace(&mut self.told, used))?;
        let of_tx =
            std::mem::take(&mut self.sent) && active.queues[TX].needs_notification(&*active.memory)?;
        if of_rx || of_tx {
            active.interrupt.queue();
        }
        Ok(())
    }
}

fn drop_frames(counters: &Counters, count: u64) {
    counters.dropped.fetch_add(count, Ordering::Relaxed);
}

/// A header and a frame of the guest.
type Sent<'s> = ([u8; HEADER], &'s [u8]);

/// What the driver sends in `chain`, a header and a frame, which is copied to `scratch`; none where it is too short or too long to be
/// that.
///
/// # Errors
/// The chain is not in guest RAM.
fn copy_out<'s>(
    memory: &GuestMemory,
    chain: Chain,
    scratch: &'s mut [u8],
) -> Result<Option<Sent<'s>>, DeviceError> {
    let mut header = [0; HEADER];
    let mut header_len = 0;
    let mut frame_len = 0;
    for (index, descriptor) in chain.readable().enumerate() {
        let len = descriptor.len() as usize;
        // The header may lie in a descriptor of its own, or in front of the frame.
        let first = len.min(HEADER - header_len);
        let Some(place) = scratch.get_mut(frame_len..frame_len + (len - first)) else { return Ok(None) };
        if index == MAX_BUFFERS {
            return Ok(None);
        }
        let outside = |_| DeviceError::Driver("a buffer outside of its memory");
        let second = GuestAddress(descriptor.addr().0.wrapping_add(first as u64));
        for (part, address) in
            [(&mut header[header_len..header_len + first], descriptor.addr()), (place, second)]
        {
            if !part.is_empty() {
                memory.read_slice(part, address).map_err(outside)?;
            }
        }
        header_len += first;
        frame_len += len - first;
    }
    Ok((frame_len > 0).then_some((header, &scratch[..frame_len])))
}

impl<N: Network> Device for Net<N> {
    fn info(&self) -> Info {
        let features = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        Info {
            id: VIRTIO_ID_NET,
            name: "net",
            features: features.into_iter().fold(0, |bits, feature| bits | 1 << feature),
            queues: &[256, 256],
        }
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, active: Active, events: &Events<'_>) -> Result<(), DeviceError> {
        self.attach(active, events)
    }

    fn deactivate(&mut self, events: &Events<'_>) {
        // Missing where the activation has failed half-way.
        let _ = events.remove(self.network.fd());
        self.network.detach();
        self.active = None;
    }

    fn notified(&mut self, queue: usize, _: &Events<'_>) -> Result<(), DeviceError> {
        if queue == TX {
            self.transmit()?;
        } else {
            self.hush()?;
        }
        self.pass()
    }

    fn ready(&mut self, _: u32, _: EventFlags, _: &Events<'_>) -> Result<(), DeviceError> {
        self.pass()
    }

    fn configure(&mut self, setting: Setting, _: &Events<'_>) -> Result<(), DeviceError> {
        self.network.configure(setting)
    }

    fn save(&self) -> Saved {
        Saved { device: State::Net(NetState {}), queues: self.active.as_ref().map(Active::save) }
    }

    fn restore(
        &mut self,
        state: State,
        active: Option<Active>,
        events: &Events<'_>,
    ) -> Result<(), DeviceError> {
        let State::Net(NetState {}) = state else {
            return Err(DeviceError::State { device: "net", why: "it is of another device".to_owned() });
        };
        match active {
            Some(active) => self.attach(active, events),
            None => Ok(()),
        }
    }
}
