//! Machines that run and cannot be talked to: of another release, at their limit of clients, or broken. They can be ended, and
//! are tried again.

use std::sync::Arc;
use std::time::Duration;

use super::create::blocking;
use super::error::DaemonError;
use super::events::Kind;
use super::life::supervise;
use super::metrics::Metrics;
use super::sandbox::Sandbox;
use super::sleep;
use super::state::{State, Status};
use super::{Daemon, chain};
use crate::sandbox::{AdoptError, Directory, Found, Handle, adopt};

/// Between two attempts: twice as long after each.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// What has become of a sandbox's machine. Blocks.
pub(super) fn found(found: Result<Found, AdoptError>, directory: &Directory, metrics: &Metrics) -> Status {
    let counted = |mut handle: Handle| {
        handle.traffic = metrics.traffic();
        Arc::new(handle)
    };
    match found {
        // Whoever was waiting for it is no more.
        Ok(Found::Running { handle, ready: false, .. }) => {
            let reason = "its guest is still coming up".to_owned();
            Status { state: State::Creating, ..Status::lost(Some(counted(handle)), reason) }
        }
        Ok(Found::Running { handle, paused, .. }) => {
            let paused = sleep::is_paused(directory, &handle, paused);
            Status::up(counted(handle), paused)
        }
        Ok(Found::Deaf { handle, error }) => Status::lost(Some(counted(handle)), chain(&error)),
        Ok(Found::Ended(_)) if sleep::is_asleep(directory) => Status::sleeping(),
        // Whether it was to end is not known any more; how it did is.
        Ok(Found::Ended(ending)) => Status::ended(&ending, false),
        Err(error) => Status::lost(None, chain(&error)),
    }
}

impl Daemon {
    /// Tries in the background until the machine answers or has ended, or the sandbox goes.
    pub(super) fn look_for(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let (daemon, sandbox) = (Arc::clone(self), Arc::downgrade(sandbox));
        tokio::spawn(async move {
            let mut pause = FIRST;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
                let Some(sandbox) = sandbox.upgrade() else { return };
                let _turn = sandbox.turn.lock().await;
                daemon.look(&sandbox).await;
                if !sandbox.status().lost {
                    tracing::info!(sandbox = sandbox.id(), state = %sandbox.state(), "found again");
                    return;
                }
            }
        });
    }

    /// Whether a machine runs that cannot be talked to is found out anew, and what runs in it goes on with us. The turn is the caller's.
    pub(super) async fn look(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        if let Some(handle) = sandbox.look().await {
            self.attend(sandbox, &handle);
        }
    }

    /// Follows the job of a machine that was found again, and puts it to sleep when nothing is done in it.
    pub(super) fn attend(self: &Arc<Self>, sandbox: &Arc<Sandbox>, handle: &Arc<Handle>) {
        self.find_job(sandbox, handle);
        self.watch_idleness(sandbox, handle);
    }
}

impl Sandbox {
    /// The same, for whoever ends it; the machine, if it can be talked to now.
    async fn look(self: &Arc<Self>) -> Option<Arc<Handle>> {
        if !self.status().lost {
            return None;
        }
        let (directory, metrics) = (Arc::clone(&self.directory), Arc::clone(&self.metrics));
        let Ok(new) =
            blocking(move || Ok(found(adopt(&directory, Duration::ZERO), &directory, &metrics))).await
        else {
            return None;
        };
        let mut status = self.status();
        // It may have ended meanwhile; and the way to end it that there is stays.
        if !status.lost || (new.lost && (new.handle.is_none() || status.handle.is_some())) {
            return None;
        }
        let handle = new.handle.clone();
        *status = Status { stopping: status.stopping, ..new };
        match &status.handle {
            _ if status.lost => {}
            Some(_) => {
                self.tell(Kind::Adopted, None);
                self.find_ports();
                self.find_network();
            }
            None if status.state == State::Sleeping => self.tell(Kind::Slept, None),
            None => self.tell_end(status.state, status.reason.as_deref()),
        }
        let is_found = !status.lost;
        drop(status);
        if let Some(handle) = &handle {
            supervise(self, Arc::clone(handle));
        }
        handle.filter(|_| is_found)
    }

    /// The machine to be ended, if there is one, whether it can be talked to or not. The turn is the caller's.
    pub(super) async fn to_end(self: &Arc<Self>) -> Result<Option<Arc<Handle>>, DaemonError> {
        let handle = self.status().handle.clone();
        if handle.is_some() {
            return Ok(handle);
        }
        self.look().await;
        let status = self.status();
        match &status.handle {
            None if status.lost => {
                let reason = status.reason.clone().unwrap_or_default();
                drop(status);
                Err(DaemonError::Lost { name: self.name(), reason })
            }
            handle => Ok(handle.clone()),
        }
    }
}
