//! The sandboxes of a store: created, supervised, stopped, started, removed, and found again after a restart.
//!
//! One daemon a store, which holds the lock `daemon.lock` in it. It may die at any moment. What it knows lies in the records
//! of the sandboxes, and whether one runs is known from its lock alone, so the next daemon finds everything again.
//!
//! Concurrency: any number of tasks, one for each request, and one for each machine that waits for its end. The table's lock and
//! those in a [`Sandbox`] are held for some instructions and never across an await; the table's is taken first, and a sandbox's
//! status before its record. Whoever changes the state of a sandbox holds its `turn` meanwhile.

mod collect;
mod connection;
mod create;
mod error;
mod events;
mod files;
mod images;
mod job;
mod life;
mod listen;
mod log;
mod lost;
mod metrics;
mod name;
mod network;
mod ports;
mod sandbox;
mod serve;
mod sleep;
mod snapshots;
mod state;
mod stream;
mod table;
mod tcp;
mod terminal;
mod warm;
mod watch;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rootfs_builder::store::Store;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

pub(crate) use connection::Connection;
pub(crate) use create::New;
pub(crate) use error::DaemonError;
pub(crate) use events::{Filter, Follower, Kind, Told};
pub(crate) use images::{Got, ImageWanted, Wanted};
pub(crate) use life::{Changes, GRACE, Stats};
pub(crate) use log::{Line, Reader, Stream};
pub(crate) use ports::PortView;
pub(crate) use sandbox::{Sandbox, View, is_input};
pub(crate) use serve::{ServeError, run};
pub(crate) use state::{Start, StartedFrom, State};
pub(crate) use table::Page;
pub(crate) use tcp::{Key, Tcp, loopback};
pub(crate) use terminal::Terminal;

use crate::config::Config;
use crate::lock::{self, Lock};
use crate::sandbox::{Directory, Fate, Found, Sandboxes, adopt};
use crate::snapshots::Snapshots;
use events::Events;
use metrics::Metrics;
use snapshots::{Rehearsed, Verified};
use table::Table;

/// So long the work in the background may take when the daemon ends.
const WORK: Duration = Duration::from_secs(20);

/// So many machines are asked at once whether they run.
const ADOPTIONS: usize = 32;
/// So many for each processor come up at once: of more at a time each takes longer, and with many all of them too long.
const LAUNCHES: usize = 2;
/// And so many in any case: one that does not come up holds up some of the others at most.
const MIN_LAUNCHES: usize = 4;
/// One that has begun to end, or to start, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// All sandboxes of a store.
#[derive(Debug)]
pub(crate) struct Daemon {
    config: Config,
    store: Store,
    sandboxes: Sandboxes,
    table: Mutex<Table>,
    /// What nobody waits for until the daemon ends.
    work: TaskTracker,
    /// The places of those who pull.
    pulls: Semaphore,
    /// The places of machines that come up.
    launches: Semaphore,
    events: Events,
    metrics: Arc<Metrics>,
    /// Those of users.
    snapshots: Snapshots,
    /// Those that warm starts go on from.
    warm: Snapshots,
    verified: Verified,
    rehearsed: Rehearsed,
    /// Of what kinds one is being written for warm starts.
    keeping: Mutex<BTreeSet<warm::Key>>,
    /// Whether there may be directories that no sandbox has.
    leftovers: AtomicBool,
    lock: Lock,
}

/// A daemon that cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot use {path}")]
    Lock { path: String, source: std::io::Error },
    #[error("another daemon has the store {0}")]
    Taken(String),
    #[error(transparent)]
    Directory(#[from] crate::sandbox::DirectoryError),
    #[error("cannot look for the sandboxes")]
    Host(#[source] std::io::Error),
}

impl Daemon {
    /// Takes the store, and finds the sandboxes that are in it.
    pub(crate) async fn open(config: Config, store: Store) -> Result<Arc<Self>, OpenError> {
        let daemon = in_background(|| Self::take(config, store)).await?;
        let listing = Arc::clone(&daemon);
        let directories = in_background(move || Ok(listing.sandboxes.list()?)).await?;
        // A machine that does not answer holds up some of the others at most.
        let (places, mut adoptions) = (Arc::new(Semaphore::new(ADOPTIONS)), JoinSet::new());
        for directory in directories {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await;
            let daemon = Arc::clone(&daemon);
            adoptions.spawn_blocking(move || {
                daemon.find_again(directory);
                drop(place);
            });
        }
        adoptions.join_all().await;
        daemon.sweep().await;
        Ok(daemon)
    }

    fn take(config: Config, store: Store) -> Result<Arc<Self>, OpenError> {
        let root = store.root();
        let lock = match Lock::take(root) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(OpenError::Taken(root.display().to_string())),
            Err(source) => {
                return Err(OpenError::Lock { path: lock::path(root).display().to_string(), source });
            }
        };
        let (sandboxes, table, work) = (Sandboxes::new(root), Mutex::default(), TaskTracker::new());
        let [snapshots, warm] = ["snapshots", "warm"].map(|dir| Snapshots::new(root.join(dir)));
        for snapshots in [&snapshots, &warm] {
            if let Err(error) = snapshots.sweep() {
                tracing::warn!(error = %chain(&error), "what is left of a snapshot stays");
            }
        }
        let pulls = Semaphore::new(images::MAX_PULLS);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let launches = Semaphore::new((LAUNCHES * processors).max(MIN_LAUNCHES));
        let (events, metrics) = (Events::new(), Arc::new(Metrics::new()));
        Ok(Arc::new(Self {
            config,
            store,
            sandboxes,
            table,
            work,
            pulls,
            launches,
            events,
            metrics,
            snapshots,
            warm,
            verified: Verified::default(),
            rehearsed: Rehearsed::default(),
            keeping: Mutex::default(),
            leftovers: AtomicBool::new(false),
            lock,
        }))
    }

    /// Removes what nobody runs and nobody wants to keep.
    async fn sweep(&self) {
        let sweeping = self.sandboxes.clone();
        let swept = in_background(move || Ok(sweeping.sweep()?)).await;
        if let Err(error) = swept {
            tracing::warn!(error = %chain(&error), "what is left of a sandbox stays");
            self.leaves_something();
        }
    }

    /// What could not be removed is tried again in a while.
    fn leaves_something(&self) {
        self.leftovers.store(true, Ordering::Relaxed);
    }

    fn find_again(self: &Arc<Self>, directory: Directory) {
        let (fate, record) = (directory.fate(), directory.read_record());
        let record = match (fate, record) {
            (Some(Fate::Keep), Ok(record)) => record,
            // Of a machine that was to be removed, and has outlived the daemon that was at it.
            (Some(Fate::Remove), Ok(record)) if record.removed => record,
            (Some(Fate::Keep), Err(error)) => {
                tracing::warn!(sandbox = %directory.id(), error = %chain(&error), "left as it is");
                return;
            }
            // Somebody else's, or nobody's.
            _ => return,
        };
        let directory = Arc::new(directory);
        let found = adopt(&directory, PATIENCE);
        // Whoever has asked for it was never told that it is there.
        if matches!(found, Ok(Found::Ended(_))) && !directory.had_a_machine() {
            tracing::info!(sandbox = %directory.id(), "was being made, and goes");
            if let Err(error) = directory.remove() {
                tracing::warn!(sandbox = %directory.id(), error = %chain(&error), "cannot be removed");
            }
            return;
        }
        if let Err(error) = directory.clear_new_record() {
            tracing::warn!(sandbox = %directory.id(), error = %chain(&error), "what is left of a record stays");
        }
        // Nobody was told of a machine that does not know whose it is, and it must not run on as another's.
        let removed = record.removed || directory.is_becoming();
        let status = lost::found(found, &directory, &self.metrics);
        let (handle, is_lost) = (status.handle.clone(), status.lost);
        tracing::info!(sandbox = %directory.id(), state = %status.state, "found");
        let sandbox =
            Arc::new(Sandbox::new(directory, record, status, self.events.clone(), Arc::clone(&self.metrics)));
        if removed {
            self.release(sandbox);
            return;
        }
        self.table().insert(Arc::clone(&sandbox));
        if let Some(handle) = handle {
            if !is_lost {
                sandbox.find_ports();
                sandbox.find_network();
                self.attend(&sandbox, &handle);
            }
            life::supervise(&sandbox, handle);
        } else if sandbox.record().job.as_ref().is_some_and(|job| job.removes) && !is_lost {
            // Its machine has ended when there was no daemon.
            self.table().remove(&sandbox);
            self.release(sandbox);
            return;
        }
        if is_lost {
            tracing::warn!(sandbox = sandbox.id(), reason = sandbox.view().reason, "cannot be talked to");
            self.look_for(&sandbox);
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox that `key` addresses: an id, a name, or the beginning of one id alone.
    pub(crate) fn find(&self, key: &str) -> Result<Arc<Sandbox>, DaemonError> {
        self.table().find(key)
    }

    /// The sandboxes that have all of `labels`, the oldest first.
    pub(crate) fn list(&self, labels: &[(String, String)], page: Page) -> (Vec<View>, usize) {
        let all = self.table().all();
        let mut views: Vec<View> = all.iter().map(|sandbox| sandbox.view()).collect();
        views.retain(|view| labels.iter().all(|(key, value)| view.record.labels.get(key) == Some(value)));
        views.sort_by(|a, b| (a.record.created_at_ms, &a.id).cmp(&(b.record.created_at_ms, &b.id)));
        let total = views.len();
        (views.into_iter().skip(page.start()).take(page.limit).collect(), total)
    }

    /// Whether nothing would be missed if the daemon went.
    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_empty() && self.table().all().iter().all(|sandbox| !sandbox.status().is_up())
    }

    /// Waits for what goes on in the background. Sandboxes run on.
    pub(crate) async fn finish(&self) {
        self.work.close();
        if tokio::time::timeout(WORK, self.work.wait()).await.is_err() {
            tracing::warn!("the work in the background has not ended: the next daemon goes on with it");
        }
    }
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(OpenError::Host(e.into())))
}

/// An error with its sources, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.ends_with(&source_text) {
            text = format!("{text}: {source_text}");
        }
        next = source.source();
    }
    text
}
