//! How much a guest may use.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a guest's network is bounded by, besides the memory that it takes here. Nothing, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes a second that it may send, and as many that it may get. Streams go slower; datagrams above that are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
    /// Connections a second that it may begin. One more has to be tried again, as kernels do, after a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<NonZeroU32>,
}

/// How soon whoever found nothing left is to ask again.
pub(super) const AGAIN: Duration = Duration::from_millis(10);

/// What is left of a rate. It saves up `most`.
pub(super) struct Bucket {
    rate: Option<u64>,
    most: u64,
    left: u64,
    since: Instant,
}

impl Bucket {
    pub(super) fn new(rate: Option<u64>, most: u64, now: Instant) -> Self {
        Self { rate, most, left: most, since: now }
    }

    /// How much there is.
    pub(super) fn left(&mut self, now: Instant) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        let elapsed = now.saturating_duration_since(self.since);
        let more = u64::try_from(u128::from(rate) * elapsed.as_micros() / 1_000_000).unwrap_or(u64::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.most);
            self.since = now;
        }
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// Takes some of it.
    pub(super) fn spend(&mut self, amount: usize) {
        self.left = self.left.saturating_sub(amount as u64);
    }

    /// Takes all of `amount`, or nothing.
    pub(super) fn take(&mut self, now: Instant, amount: usize) -> bool {
        let there = self.left(now) >= amount;
        if there {
            self.spend(amount);
        }
        there
    }
}

/// A guest's rates.
pub(super) struct Rates {
    pub(super) to_host: Bucket,
    pub(super) to_guest: Bucket,
    pub(super) connections: Bucket,
}

impl Rates {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let bytes = limits.bytes_per_second.map(NonZeroU64::get);
        // A tenth of a second's, and the longest datagram at any rate.
        let most = (bytes.unwrap_or(0) / 10).max(1 << 16);
        let connections = limits.connections_per_second.map(|rate| u64::from(rate.get()));
        Self {
            to_host: Bucket::new(bytes, most, now),
            to_guest: Bucket::new(bytes, most, now),
            // A second's: those that are too many all come again a second later.
            connections: Bucket::new(connections, connections.unwrap_or(0), now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_saved_up_for_a_moment() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Some(1000), 100, now);
        assert!(bucket.take(now, 100));
        assert!(!bucket.take(now, 1));
        let mut given = 0;
        for millisecond in 1..=10_000 {
            let now = now + Duration::from_micros(millisecond * 1000 + 300);
            while bucket.take(now, 1) {
                given += 1;
            }
        }
        assert!((9_900..=10_000).contains(&given), "{given}");
        assert_eq!(bucket.left(now + Duration::from_mins(1)), 100);
    }

    #[test]
    fn without_a_rate_there_is_always_more() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, 0, now);
        assert!((0..10).all(|_| bucket.take(now, usize::MAX)));
    }
}
