//! What happens to a sandbox after it was made: stopped, started, paused, resumed, renamed, removed, and the end of its
//! machine.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::Hello;
use serde::Serialize;
use vmm::control::{Client, ControlError, Metrics};

use super::create::blocking;
use super::error::DaemonError;
use super::events::Kind;
use super::sandbox::Sandbox;
use super::state::{Start, StartedFrom, State, Status};
use super::{Daemon, chain, name};
use crate::sandbox::{AccessChange, Begin, Claim, Directory, Ending, Handle, Kernel};

/// Between SIGTERM and SIGKILL to the processes of a sandbox that is stopped.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// After its grace the guest kills, writes back and powers off; this much later it is not waited for any more.
const SLACK: Duration = Duration::from_secs(8);
/// A machine that has ended gives its lock back in ms. A process that is being forked holds it for some more.
const UNLOCK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// What cannot be removed is tried again so often at least.
const AGAIN: Duration = Duration::from_mins(1);

/// What is to be another way; what is absent stays.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// Made of what holds when it is this change's turn: of two at once, each keeps what the other one has changed.
    pub(crate) network: Option<AccessChange>,
}

/// What a machine has cost.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Stats {
    /// What the agent has said of its start, where this daemon has started the machine.
    #[schema(value_type = Option<Object>)]
    agent: Option<Hello>,
    /// Exits, notifications and interrupts; the steps of the start with their times in µs; memory in KiB; open descriptors.
    #[schema(value_type = Object)]
    machine: Metrics,
}

/// Waits in the background for the end of a machine.
pub(super) fn supervise(sandbox: &Arc<Sandbox>, handle: Arc<Handle>) {
    let sandbox = Arc::downgrade(sandbox);
    tokio::spawn(async move {
        let ended = handle.ended().await;
        let Some(sandbox) = sandbox.upgrade() else { return };
        match ended {
            Ok(ending) => {
                if sandbox.ended(&handle, &ending) {
                    // What follows the first line is the guest's.
                    let reason = ending.to_string();
                    let reason = reason.lines().next().unwrap_or_default();
                    tracing::info!(sandbox = sandbox.id(), reason, "ended");
                }
            }
            Err(error) => tracing::error!(sandbox = sandbox.id(), %error, "cannot be supervised"),
        }
    });
}

impl Sandbox {
    /// Powers the guest off and waits for the end of the machine; kills it if it does not end by itself. Its processes have
    /// `grace` to end.
    async fn stop(self: &Arc<Self>, grace: Duration) -> Result<(), DaemonError> {
        let _turn = self.turn.lock().await;
        if self.state() == State::Sleeping {
            return self.forget_memory().await;
        }
        let handle = self.to_end().await?.ok_or_else(|| self.wrong_state("stop"))?;
        let paused = self.state() == State::Paused;
        self.status().stopping = true;
        let asked = async {
            if paused {
                self.control("resume", &handle, Client::resume).await?;
            }
            let grace_ms = Some(grace.as_millis() as u64);
            // The end of the stream may come before the answer does.
            let _ = handle.ask(&protocol::Request::PowerOff { grace_ms }).await;
            self.ending_of(&handle).await
        };
        let ending = if let Ok(Ok(ending)) = tokio::time::timeout(grace + SLACK, asked).await {
            ending
        } else {
            tracing::warn!(sandbox = self.id(), "has not powered off and is killed");
            self.end_machine(&handle).await?;
            self.ending_of(&handle).await?
        };
        self.ended(&handle, &ending);
        Ok(())
    }

    async fn pause(&self) -> Result<(), DaemonError> {
        let _turn = self.turn.lock().await;
        let handle = self.machine("pause", &[State::Running])?;
        self.control("pause", &handle, Client::pause).await?;
        self.is_now(&handle, State::Paused, Kind::Paused);
        Ok(())
    }

    async fn resume(&self) -> Result<(), DaemonError> {
        let _turn = self.turn.lock().await;
        let handle = self.machine("resume", &[State::Paused])?;
        // What is left of one that could not be put to sleep is not what it will be.
        self.directory.clear_snapshots()?;
        self.control("resume", &handle, Client::resume).await?;
        self.is_now(&handle, State::Running, Kind::Resumed);
        Ok(())
    }

    fn is_now(&self, handle: &Arc<Handle>, state: State, kind: Kind) {
        let mut status = self.status();
        // It may have ended in the meantime.
        if status.handle.as_ref().is_some_and(|current| Arc::ptr_eq(current, handle)) {
            status.state = state;
            self.tell(kind, None);
        }
    }

    async fn ending_of(&self, handle: &Handle) -> Result<Ending, DaemonError> {
        handle.ended().await.map_err(|e| self.host("wait for the end of", e))
    }

    /// Kills a machine and waits until it is gone.
    pub(super) async fn end_machine(&self, handle: &Arc<Handle>) -> Result<(), DaemonError> {
        // It will not say it any more.
        self.count_network(handle).await;
        let handle = Arc::clone(handle);
        blocking(move || Ok(handle.end())).await?.map_err(|e| self.host("end", e))
    }

    /// What the machine has cost since it was started.
    pub(crate) async fn stats(&self) -> Result<Stats, DaemonError> {
        let action = "measure";
        let handle = self.machine(action, &[State::Running, State::Paused])?;
        let machine = self.control(action, &handle, Client::metrics).await?;
        Ok(Stats { agent: handle.hello().cloned(), machine })
    }

    /// Asks the process of a machine for something.
    pub(super) async fn control<T: Send + 'static>(
        &self,
        action: &'static str,
        handle: &Arc<Handle>,
        request: impl FnOnce(&mut Client) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, DaemonError> {
        let handle = Arc::clone(handle);
        let done = blocking(move || Ok(handle.control().and_then(|mut client| request(&mut client)))).await?;
        done.map_err(|source| DaemonError::Control { action, name: self.name(), source })
    }

    pub(super) fn host(&self, action: &'static str, source: io::Error) -> DaemonError {
        DaemonError::Host { action, name: self.name(), source }
    }

    /// Ends the machine, if there is one, and removes everything; false if somebody else runs it. The turn is the caller's.
    async fn release(self: &Arc<Self>) -> Result<bool, DaemonError> {
        if let Some(handle) = self.to_end().await? {
            self.end_machine(&handle).await?;
            // Here, so that it is told before the removal is.
            self.ended(&handle, &self.ending_of(&handle).await?);
        }
        remove(&self.directory).await
    }

    /// The lock of a sandbox that nobody runs.
    pub(super) async fn claim(&self) -> Result<OwnedFd, DaemonError> {
        let end = tokio::time::Instant::now() + UNLOCK;
        loop {
            match self.directory.claim()? {
                Claim::Ours(lock) => return Ok(lock),
                Claim::Held if tokio::time::Instant::now() < end => tokio::time::sleep(PAUSE).await,
                Claim::Held => return Err(self.host("lock", io::ErrorKind::TimedOut.into())),
                Claim::NoLock | Claim::Replaced => {
                    return Err(self.host("lock", io::ErrorKind::NotFound.into()));
                }
            }
        }
    }

    /// Writes the record as it is. Of several at once, the last one writes what all have changed.
    pub(super) async fn write_record(self: &Arc<Self>) -> Result<(), DaemonError> {
        let sandbox = Arc::clone(self);
        let _writing = self.writing.lock().await;
        blocking(move || {
            let record = sandbox.record().clone();
            Ok(sandbox.directory.write_record(&record)?)
        })
        .await
    }
}

impl Daemon {
    /// Does what must not stop half-way: it goes on when nobody waits for it any more, and the daemon waits for it when it ends.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, DaemonError>> + Send + 'static,
    ) -> Result<T, DaemonError> {
        self.work.spawn(work).await.map_err(|_| DaemonError::Ending)?
    }

    /// Powers the guest off, see [`Sandbox::stop`].
    pub(crate) async fn stop(&self, sandbox: &Arc<Sandbox>, grace: Duration) -> Result<(), DaemonError> {
        let sandbox = Arc::clone(sandbox);
        self.to_its_end(async move { sandbox.stop(grace).await }).await
    }

    /// Halts the vCPUs; memory stays.
    pub(crate) async fn pause(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let sandbox = Arc::clone(sandbox);
        self.to_its_end(async move { sandbox.pause().await }).await
    }

    /// Lets the vCPUs run again.
    pub(crate) async fn resume(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let sandbox = Arc::clone(sandbox);
        self.to_its_end(async move { sandbox.resume().await }).await
    }

    /// Starts the machine of a sandbox again, on the disk that it has.
    pub(crate) async fn start(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let (daemon, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.to_its_end(async move {
            let _turn = sandbox.turn.lock().await;
            daemon.look(&sandbox).await;
            let removed = sandbox.record().removed;
            if removed || !matches!(sandbox.state(), State::Stopped | State::Failed) {
                return Err(sandbox.wrong_state("start"));
            }
            sandbox.is_not_lost()?;
            // From now on its memory counts.
            let before = std::mem::replace(&mut *sandbox.status(), Status::creating());
            let result = daemon.start_now(&sandbox).await;
            match &result {
                Ok(()) => {}
                // Nothing has been started.
                Err(
                    DaemonError::TooMuchMemory { .. } | DaemonError::Port { .. } | DaemonError::PortOf { .. },
                ) => *sandbox.status() = before,
                Err(error) => sandbox.has_failed(error),
            }
            result
        })
        .await
    }

    async fn start_now(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        self.admitted(sandbox)?;
        let began = Instant::now();
        let (config, store) = (self.config.kernel.clone(), self.store.clone());
        let lock = sandbox.claim().await?;
        let kernel = blocking(move || Ok(Kernel::find(&config, store.root())?)).await?;
        let handle = self.launch(sandbox, lock, Begin::Kernel(kernel), "").await?;
        let start = Start::from(StartedFrom::Kernel, began);
        self.begins(sandbox, &handle, start).await
    }

    /// Whether there is memory for a sandbox, which counts already.
    pub(super) fn admitted(&self, sandbox: &Sandbox) -> Result<(), DaemonError> {
        let used = self.table().memory_mib();
        let limit = self.config.max_memory.value.0 >> 20;
        if used > limit {
            let wanted = u64::from(u32::from(sandbox.record().memory_mib));
            return Err(DaemonError::TooMuchMemory { used: used - wanted, wanted, limit });
        }
        Ok(())
    }

    /// Makes of a sandbox what `changes` say.
    pub(crate) async fn change(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        changes: Changes,
    ) -> Result<(), DaemonError> {
        if let Some(name) = &changes.name {
            name::check(name)?;
        }
        let (daemon, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.to_its_end(async move { daemon.change_now(&sandbox, changes).await }).await
    }

    async fn change_now(&self, sandbox: &Arc<Sandbox>, changes: Changes) -> Result<(), DaemonError> {
        let Changes { name, labels, network } = changes;
        let _turn = sandbox.turn.lock().await;
        let (before, network) = {
            let table = self.table();
            if let Some(name) = &name
                && let Some(other) = table.named(name)
                && other.id() != sandbox.id()
            {
                return Err(DaemonError::NameTaken { name: name.clone(), id: other.id().to_owned() });
            }
            let mut record = sandbox.record();
            let before = record.clone();
            let network = network.map(|change| change.on(before.access())).transpose();
            let network = network.map_err(DaemonError::Policy)?;
            record.name = name.unwrap_or_else(|| before.name.clone());
            record.labels = labels.unwrap_or_else(|| before.labels.clone());
            if let Some(network) = &network {
                record.set_access(network.clone());
            }
            (before, network)
        };
        // The machine has to do with the network alone.
        let network_before = network.is_some().then(|| before.access());
        let result = match (sandbox.write_record().await, network) {
            (Ok(()), Some(network)) => sandbox.enforce(network).await,
            (written, _) => written,
        };
        if result.is_ok() {
            sandbox.tell(Kind::Changed, None);
        } else {
            {
                let mut record = sandbox.record();
                record.set_access(before.access());
                (record.name, record.labels) = (before.name, before.labels);
            }
            // Where the disk is full it is the old one still. What the machine has taken, and could not tell any more, is taken back.
            if let Err(error) = sandbox.write_record().await {
                tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "its record may hold a change that was refused");
            }
            if let Some(network) = network_before {
                let _ = sandbox.enforce(network).await;
            }
        }
        result
    }

    /// Removes a sandbox: nobody finds it any more when this returns, and what it has is released in the background.
    pub(crate) async fn remove(self: &Arc<Self>, sandbox: Arc<Sandbox>) -> Result<(), DaemonError> {
        let daemon = Arc::clone(self);
        self.to_its_end(async move {
            // Of two who remove it, one finds it.
            if !daemon.table().remove(&sandbox) {
                return Err(DaemonError::NotFound(sandbox.id().to_owned()));
            }
            sandbox.record().removed = true;
            // A daemon that finds it again goes on with its removal.
            let Err(error) = sandbox.write_record().await else {
                daemon.release(sandbox);
                return Ok(());
            };
            // There may be no room for that on the disk: then there is no answer before it is gone.
            let turn = sandbox.turn.lock().await;
            sandbox.status().stopping = true;
            let released = sandbox.release().await;
            drop(turn);
            if matches!(released, Ok(true)) {
                sandbox.released.cancel();
                return Ok(());
            }
            sandbox.record().removed = false;
            daemon.table().insert(sandbox);
            Err(error)
        })
        .await
    }

    pub(super) fn release(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        self.work.spawn(async move {
            // One that is coming up has to be up, or to have failed.
            let _turn = sandbox.turn.lock().await;
            sandbox.status().stopping = true;
            let mut pause = PAUSE;
            loop {
                match sandbox.release().await {
                    Ok(true) => {
                        tracing::info!(sandbox = sandbox.id(), "removed");
                        sandbox.tell(Kind::Removed, None);
                        break sandbox.released.cancel();
                    }
                    Ok(false) => {
                        tracing::error!(sandbox = sandbox.id(), "cannot be removed: somebody runs it");
                    }
                    Err(error) => {
                        tracing::error!(sandbox = sandbox.id(), error = %chain(&error), "cannot be removed");
                    }
                }
                // The next daemon goes on with it if this one ends before.
                pause = (pause * 4).min(AGAIN);
                tokio::time::sleep(pause).await;
            }
        });
    }
}

/// Removes a sandbox that nobody runs; false if somebody does all the same.
pub(super) async fn remove(directory: &Arc<Directory>) -> Result<bool, DaemonError> {
    let end = tokio::time::Instant::now() + UNLOCK;
    loop {
        let directory = Arc::clone(directory);
        if blocking(move || Ok(directory.remove()?)).await? {
            return Ok(true);
        }
        if tokio::time::Instant::now() > end {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
