//! Whether anybody on the host has a stream to the guest, and since when nobody has: what an idle machine is known by.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Streams of the host's clients. Kept by the device's thread, read by any.
#[derive(Debug)]
pub struct Activity {
    made: Instant,
    open: AtomicU64,
    /// The last time that anything began or ended, in ms since it was made.
    last_ms: AtomicU64,
}

/// A stream that is open until this is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Default for Activity {
    fn default() -> Self {
        Self { made: Instant::now(), open: AtomicU64::new(0), last_ms: AtomicU64::new(0) }
    }
}

impl Activity {
    /// Something happens now.
    pub fn touch(&self) {
        self.last_ms.store(self.made.elapsed().as_millis() as u64, Ordering::Release);
    }

    /// For how long no stream has been open; zero while one is.
    pub fn idle(&self) -> Duration {
        // First the count: a stream sets the time before it is taken off.
        match self.open.load(Ordering::Acquire) {
            0 => self
                .made
                .elapsed()
                .saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Acquire))),
            _ => Duration::ZERO,
        }
    }

    /// How many streams are open.
    #[cfg(test)]
    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.touch();
        Busy(Arc::clone(self))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_only_without_streams() {
        let activity = Arc::new(Activity::default());
        let pause = Duration::from_millis(30);
        std::thread::sleep(pause);
        assert!(activity.idle() >= pause);
        let (first, second) = (activity.begin(), activity.begin());
        std::thread::sleep(pause);
        assert_eq!(activity.idle(), Duration::ZERO);
        drop(first);
        assert_eq!(activity.idle(), Duration::ZERO);
        drop(second);
        assert!(activity.idle() < pause);
        std::thread::sleep(pause);
        assert!(activity.idle() >= pause);
        activity.touch();
        assert!(activity.idle() < pause);
    }
}
