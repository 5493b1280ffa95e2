//! Deadlines of TCP flows.

use std::collections::BTreeSet;
use std::time::Instant;

/// At most one deadline for each slot.
#[derive(Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, usize)>,
}

impl Timers {
    /// Sets the deadline of `slot`, which was `armed`. A later one than that is not set: it is found out when the earlier one
    /// is due, which costs less than moving it for every segment.
    pub(super) fn set(&mut self, slot: usize, armed: &mut Option<Instant>, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        self.cancel(slot, armed);
        self.queue.insert((deadline, slot));
        *armed = Some(deadline);
    }

    /// Forgets the deadline of `slot`.
    pub(super) fn cancel(&mut self, slot: usize, armed: &mut Option<Instant>) {
        if let Some(at) = armed.take() {
            self.queue.remove(&(at, slot));
        }
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, _)| at)
    }

    /// Takes out a slot whose deadline has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<usize> {
        let &(at, slot) = self.queue.first()?;
        if at > now {
            return None;
        }
        self.queue.pop_first();
        Some(slot)
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slot_has_one_deadline_and_the_earlier_one_counts() {
        let mut timers = Timers::default();
        let now = Instant::now();
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        let (mut first, mut second) = (None, None);
        timers.set(1, &mut first, at(5));
        timers.set(2, &mut second, at(3));
        timers.set(1, &mut first, at(9));
        assert_eq!((first, timers.queue.len()), (at(5), 2), "a later one is found out in time");
        timers.set(1, &mut first, at(1));
        assert_eq!((timers.next(), timers.queue.len()), (at(1), 2));
        assert_eq!(timers.due(now), None);
        assert_eq!(timers.due(now + Duration::from_secs(2)), Some(1));
        timers.cancel(2, &mut second);
        assert_eq!((timers.next(), second), (None, None));
    }
}
