//! What all parts of the engine use.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Counters;
use super::journal::Denials;
use super::limits::{Limits, Rates};
use super::link::Link;
use super::packet::{self, Packet, Unreachable};
use super::poll::Poll;
use crate::dns::Names;
use crate::policy::Policy;

/// See the module.
pub(super) struct Core {
    pub(super) poll: Poll,
    /// The time of this call.
    pub(super) now: Instant,
    /// When smoltcp's time began.
    epoch: Instant,
    pub(super) policy: Policy,
    pub(super) names: Names,
    pub(super) denials: Denials,
    pub(super) counters: Arc<Counters>,
    pub(super) link: Link,
    pub(super) rates: Rates,
    /// Of the next packet that is cut.
    identification: u32,
}

impl Core {
    pub(super) fn new(
        poll: Poll,
        policy: Policy,
        names: Names,
        denials: Denials,
        counters: Arc<Counters>,
        now: Instant,
    ) -> Self {
        Self {
            poll,
            now,
            epoch: now,
            policy,
            names,
            denials,
            counters,
            link: Link::new(),
            rates: Rates::new(Limits::default(), now),
            identification: 0,
        }
    }

    pub(super) fn smoltcp_now(&self) -> smoltcp::time::Instant {
        // smoltcp takes its zero for "at once".
        let elapsed = self.now.saturating_duration_since(self.epoch) + Duration::from_secs(1);
        smoltcp::time::Instant::from_micros(elapsed.as_micros() as i64)
    }

    /// The same as a time of ours.
    pub(super) fn instant(&self, at: smoltcp::time::Instant) -> Instant {
        let elapsed = Duration::from_micros(at.total_micros().max(0) as u64);
        self.epoch + elapsed.saturating_sub(Duration::from_secs(1))
    }

    /// Tells that a flow was denied.
    pub(super) fn deny(
        &mut self,
        protocol: &str,
        destination: SocketAddr,
        name: Option<String>,
        rule: String,
    ) {
        // ICMP has no ports.
        let destination =
            if protocol == "icmp" { destination.ip().to_string() } else { destination.to_string() };
        self.denials.tell(self.now, protocol, destination, name, rule);
    }

    /// Tells that a name was denied.
    pub(super) fn deny_name(&mut self, name: String, rule: String) {
        self.denials.tell(self.now, "dns", name, None, rule);
    }

    /// Tells the guest that `packet` has gone nowhere.
    pub(super) fn unreachable(&mut self, packet: &Packet<'_>, why: Unreachable) {
        if let Some(answer) = packet::unreachable(packet, why) {
            self.link.packet(&answer);
        }
    }

    /// Queues a datagram, in pieces where it is longer than `mtu`. `None`: it was dropped.
    pub(super) fn datagram(&mut self, packet: &[u8], mtu: usize) -> Option<()> {
        if packet.len() <= mtu {
            return self.link.packet(packet).then_some(());
        }
        self.identification = self.identification.wrapping_add(1);
        let mut whole = true;
        for fragment in packet::fragments(packet, mtu, self.identification) {
            whole &= self.link.packet(&fragment);
        }
        whole.then_some(())
    }

    /// Counts what was dropped.
    pub(super) fn dropped(&self) {
        self.counters.dropped.fetch_add(1, Relaxed);
    }
}

/// A number that nobody guesses.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Right after boot it may have none yet; that of the process's own hashing then.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        use std::hash::{BuildHasher, RandomState};
        return RandomState::new().hash_one(0);
    }
    u64::from_ne_bytes(bytes)
}
