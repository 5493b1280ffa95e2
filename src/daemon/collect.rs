//! The store's garbage: the daemon collects it when images have come or gone, and once an hour.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use rootfs_builder::store::Budget;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Daemon, chain};

const HOUR: Duration = Duration::from_hours(1);
/// So often it looks whether images have come or gone.
const LOOK: Duration = Duration::from_secs(10);

/// Goes on until it is dropped.
pub(super) async fn collect(daemon: Arc<Daemon>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<(Instant, Option<SystemTime>)> = None;
    loop {
        look.tick().await;
        if daemon.leftovers.swap(false, Ordering::Relaxed) {
            daemon.sweep().await;
        }
        // The time before it: what comes meanwhile is seen next time.
        let named = changed(daemon.store.root());
        if last.is_some_and(|(at, before)| before == named && at.elapsed() < HOUR) {
            continue;
        }
        let (collecting, at) = (Arc::clone(&daemon), Instant::now());
        let done = tokio::task::spawn_blocking(move || once(&collecting)).await;
        if done.is_err() {
            tracing::error!("the collection of garbage has ended in a panic");
        }
        last = Some((at, named));
    }
}

fn once(daemon: &Daemon) {
    let budget = Budget { bytes: daemon.config.gc_budget.value.0, grace: daemon.config.gc_grace.value };
    let removed = &mut |removal: rootfs_builder::store::Removal| {
        tracing::info!(kind = ?removal.kind, name = removal.name, bytes = removal.freed_bytes, "collected");
    };
    match daemon.store.collect(budget, removed) {
        Ok(report) if report.over_budget_bytes > 0 => {
            let (bytes, budget) = (report.remaining_bytes, budget.bytes);
            tracing::warn!(bytes, budget, "the images are over the budget: `voidrun images rm` removes some");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(error = %chain(&error), "cannot collect the store's garbage"),
    }
    // Of images that have gone as well.
    if let Err(error) = daemon.collect_warm() {
        tracing::warn!(error = %chain(&error), "cannot collect what warm starts go on from");
    }
}

/// When a name was last given or taken.
fn changed(store: &Path) -> Option<SystemTime> {
    store.join("refs").metadata().and_then(|refs| refs.modified()).ok()
}
