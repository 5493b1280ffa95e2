//! What is told of what the policy has denied.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Counters, Denial, Journal};

/// Denials that are told at once, at most.
const BURST: u32 = 64;
/// And the time after which there is one more.
const INTERVAL: Duration = Duration::from_millis(50);

/// Tells the journal, but no more often than makes sense: a guest tries as often as it likes.
pub(super) struct Denials {
    journal: Journal,
    counters: Arc<Counters>,
    left: u32,
    since: Instant,
}

impl Denials {
    pub(super) fn new(journal: Journal, counters: Arc<Counters>, now: Instant) -> Self {
        Self { journal, counters, left: BURST, since: now }
    }

    pub(super) fn tell(
        &mut self,
        now: Instant,
        protocol: &str,
        destination: String,
        name: Option<String>,
        rule: String,
    ) {
        self.counters.denied.fetch_add(1, Relaxed);
        let more = now.saturating_duration_since(self.since).as_millis() / INTERVAL.as_millis();
        if more > 0 {
            self.left = BURST.min(self.left.saturating_add(u32::try_from(more).unwrap_or(BURST)));
            self.since = now;
        }
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (self.journal)(Denial {
            time_ms: time.as_millis() as u64,
            protocol: protocol.into(),
            destination,
            name,
            rule,
        });
    }
}
