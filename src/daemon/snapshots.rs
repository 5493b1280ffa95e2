//! Snapshots of sandboxes: taken, listed, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm::devices::block::copy_diff;
use vmm::snapshot::{self, SnapshotError};
use vmm::sparse;

use super::create::blocking;
use super::error::DaemonError;
use super::sandbox::Sandbox;
use super::sleep::SAVING;
use super::state::State;
use super::{Daemon, name};
use crate::sandbox::{Directory, Handle};
use crate::snapshots::{About, Draft, Record, Snapshot, SnapshotsError};

const TAKE: &str = "take a snapshot of";

/// The files of machines, and whether their RAM has been compared with its checksum. It is done once for each: all of it is read.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<BTreeMap<Place, Arc<Mutex<bool>>>>);

/// The files of machines of which one that goes on was asked for the pages that it writes to first. It is done once for each, since
/// whoever waits for that one waits for it as well.
#[derive(Debug, Default)]
pub(super) struct Rehearsed(Mutex<BTreeSet<Place>>);

impl Rehearsed {
    /// The place of the file; none if somebody has begun it before.
    pub(super) fn begins(&self, file: &File) -> Option<Place> {
        place(file).ok().filter(|place| locked(&self.0).insert(*place))
    }

    /// It was begun, and has failed: the next one may.
    pub(super) fn gives_up(&self, place: Place) {
        locked(&self.0).remove(&place);
    }
}

/// Where a file is, and since when it has been as it is.
pub(super) type Place = (u64, u64, i64, i64);

impl Verified {
    /// An error unless the machine in `file` is whole.
    pub(super) fn check(&self, file: &File) -> Result<(), SnapshotError> {
        let Ok(place) = place(file) else { return snapshot::verify(file).map(drop) };
        let is_whole = self.of(place);
        // Of many who come at once one reads it, and the others wait.
        let mut is_whole = locked(&is_whole);
        if !*is_whole {
            snapshot::verify(file)?;
            *is_whole = true;
        }
        Ok(())
    }

    /// The file has just been written.
    pub(super) fn trust(&self, file: &File) {
        if let Ok(place) = place(file) {
            *locked(&self.of(place)) = true;
        }
    }

    fn of(&self, place: Place) -> Arc<Mutex<bool>> {
        Arc::clone(locked(&self.0).entry(place).or_default())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(file: &File) -> io::Result<Place> {
    let found = file.metadata()?;
    Ok((found.dev(), found.ino(), found.mtime(), found.mtime_nsec()))
}

impl Daemon {
    /// Writes a sandbox that runs, is paused or sleeps, memory and disk, to a snapshot. It stands still meanwhile, and goes on as it was.
    pub(crate) async fn take_snapshot(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        name: String,
        labels: BTreeMap<String, String>,
    ) -> Result<Snapshot, DaemonError> {
        name::check(&name)?;
        let (daemon, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.to_its_end(async move {
            let _turn = sandbox.turn.lock().await;
            if sandbox.record().removed {
                return Err(sandbox.wrong_state(TAKE));
            }
            let handle = if sandbox.state() == State::Sleeping {
                None
            } else {
                Some(sandbox.machine(TAKE, &[State::Running, State::Paused])?)
            };
            let (taking, wanted) = (Arc::clone(&daemon), name.clone());
            let draft = blocking(move || {
                // Told before a sandbox stands still for it; whoever is faster is told of by `keep`.
                if taking.snapshots.is_there(&wanted) {
                    return Err(SnapshotsError::Taken(wanted).into());
                }
                Ok(taking.snapshots.draft()?)
            });
            let draft = Arc::new(draft.await?);
            match &handle {
                Some(handle) => daemon.take_of_running(&sandbox, handle, &draft).await?,
                None => daemon.take_of_sleeping(&sandbox, &draft).await?,
            }
            let record = Record::of(&sandbox.record(), labels);
            let directory = Arc::clone(&sandbox.directory);
            blocking(move || {
                daemon.keep(&directory, &draft, &name, record)?;
                Ok(daemon.snapshots.find(&name)?)
            })
            .await
        })
        .await
    }

    async fn take_of_running(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handle: &Arc<Handle>,
        draft: &Arc<Draft>,
    ) -> Result<(), DaemonError> {
        let paused = sandbox.state() == State::Paused;
        // First: it tells the next daemon that what follows was left in the middle.
        let file = sandbox.on_disk(move |directory| directory.new_snapshot(paused)).await?;
        let mut saved = sandbox.halt_commands(TAKE, handle, paused).await;
        if saved.is_ok() {
            saved = self.copy(sandbox, handle, file, Arc::clone(draft)).await;
        }
        let went_on = sandbox.go_on(handle, paused).await;
        if let Err(error) = saved.and(went_on) {
            sandbox.clear_snapshots().await?;
            return Err(error);
        }
        let path = draft.machine();
        sandbox.on_disk(move |directory| directory.give_snapshot(&path)).await
    }

    /// It was written when it fell asleep, with its commands halted.
    async fn take_of_sleeping(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        draft: &Arc<Draft>,
    ) -> Result<(), DaemonError> {
        let (daemon, sandbox, draft) = (Arc::clone(self), Arc::clone(sandbox), Arc::clone(draft));
        blocking(move || {
            let file = sandbox.directory.snapshot()?;
            // What is damaged would be trusted as a copy.
            snapshot::verify(&file).map_err(|source| DaemonError::Snapshot {
                action: TAKE,
                name: sandbox.name(),
                source,
            })?;
            sparse::copy(&file, &draft.create_machine()?)
                .map_err(|source| sandbox.host("copy the memory of", source))?;
            daemon.copy_disk(&sandbox, &draft)
        })
        .await
    }

    /// Halts a machine and writes it to `file`, and its disk to the draft. It stands still when this returns.
    pub(super) async fn copy(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handle: &Arc<Handle>,
        file: File,
        draft: Arc<Draft>,
    ) -> Result<(), DaemonError> {
        let (daemon, sandbox, handle) = (Arc::clone(self), Arc::clone(sandbox), Arc::clone(handle));
        blocking(move || {
            let saved = handle.control_within(SAVING).and_then(|mut client| {
                client.pause()?;
                client.save(file.as_fd())
            });
            saved.map_err(|source| DaemonError::Control { action: TAKE, name: sandbox.name(), source })?;
            daemon.copy_disk(&sandbox, &draft)
        })
        .await
    }

    /// Of a machine that stands still, or of none. Blocks.
    fn copy_disk(&self, sandbox: &Sandbox, draft: &Draft) -> Result<(), DaemonError> {
        let image = sandbox.record().image;
        let base = self.store.rootfs(&image)?;
        let (lower, diff) = (sandbox.directory.lower_disk()?, sandbox.directory.disk()?);
        copy_diff(&base, lower.as_ref(), &diff, &draft.disk()?)
            .map_err(|source| DaemonError::Disk { name: sandbox.name(), source })
    }

    /// Makes a snapshot of what was written to the draft of the sandbox in this directory. Blocks.
    pub(super) fn keep(
        &self,
        sandbox: &Directory,
        draft: &Draft,
        name: &str,
        mut record: Record,
    ) -> Result<(), DaemonError> {
        let machine = draft.open_machine()?;
        let damaged = |source| DaemonError::Restore { name: name.to_owned(), source };
        let summary = snapshot::inspect(&machine).map_err(damaged)?;
        record.network = summary.network;
        if summary.has_base {
            sandbox.share_base(&draft.base())?;
        }
        draft.keep(name, &record)?;
        self.verified.trust(&machine);
        Ok(())
    }

    /// All snapshots, by name.
    pub(crate) async fn list_snapshots(self: &Arc<Self>) -> Result<Vec<About>, DaemonError> {
        let daemon = Arc::clone(self);
        blocking(move || Ok(daemon.snapshots.list()?.0)).await
    }

    pub(crate) async fn snapshot(self: &Arc<Self>, name: String) -> Result<Snapshot, DaemonError> {
        let daemon = Arc::clone(self);
        blocking(move || daemon.find_snapshot(&name)).await
    }

    /// Blocks.
    fn find_snapshot(&self, name: &str) -> Result<Snapshot, DaemonError> {
        check(name)?;
        Ok(self.snapshots.find(name)?)
    }

    /// Removes a snapshot, also one that cannot be read; sandboxes that were made from it stay.
    pub(crate) async fn remove_snapshot(self: &Arc<Self>, name: String) -> Result<(), DaemonError> {
        let daemon = Arc::clone(self);
        blocking(move || {
            check(&name)?;
            Ok(daemon.snapshots.remove(&name)?)
        })
        .await
    }
}

/// What is no name is none of a snapshot, and must not become a path.
fn check(name: &str) -> Result<(), SnapshotsError> {
    name::check(name).map_err(|_| SnapshotsError::NotFound(name.chars().take(100).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_snapshot_is_asked_for_its_pages() {
        let (rehearsed, [one, other]) =
            (Rehearsed::default(), [(); 2].map(|()| tempfile::tempfile().unwrap()));
        let place = rehearsed.begins(&one).unwrap();
        assert_eq!(rehearsed.begins(&one.try_clone().unwrap()), None);
        assert!(rehearsed.begins(&other).is_some());
        rehearsed.gives_up(place);
        assert_eq!((rehearsed.begins(&one), rehearsed.begins(&other)), (Some(place), None));
    }
}
