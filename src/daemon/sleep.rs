//! Sandboxes that sleep: the memory of their machines is on disk, and takes none of this machine's.
//!
//! ```text
//!   snapshot.new   is being written by the machine, which stands still
//!   snapshot       is whole; its machine ends, or has ended
//!   snapshot, marked as used: a machine has gone on from it, and it is of no use any more
//!   paused         the machine stood still before it was written
//! ```
//!
//! A machine that is found beside such a file was left in the middle: it goes on, and the file goes. It goes last, since it is what tells
//! of that; it is marked before, so that nobody takes it for what the machine is.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use net::policy::Mode;
use protocol::Request;
use vmm::control::Client;
use vmm::snapshot;

use super::create::blocking;
use super::error::DaemonError;
use super::events::Kind;
use super::sandbox::{ANSWER, Sandbox};
use super::state::{Start, StartedFrom, State, Status};
use super::{Daemon, chain};
use crate::sandbox::{Begin, Directory, DirectoryError, Handle, reseed};

/// Between two looks at whether something is done in a sandbox.
const SHORTEST: Duration = Duration::from_millis(100);
/// A machine has to be on the disk within this time: of 64 GiB at 110 MB/s.
pub(super) const SAVING: Duration = Duration::from_mins(10);

const SLEEP: &str = "put to sleep";
const WAKE: &str = "wake";

impl Daemon {
    /// Writes the memory of a sandbox to the disk and ends its machine.
    pub(crate) async fn sleep(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let sandbox = Arc::clone(sandbox);
        self.to_its_end(async move { sandbox.sleep().await }).await
    }

    /// Has a sandbox woken that wakes by itself, before something is done in it that needs its machine.
    pub(crate) async fn awake(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        if !sandbox.record().auto_sleep || sandbox.is_asked() {
            return Ok(());
        }
        // Whoever puts it to sleep, or wakes it, at this moment.
        drop(sandbox.turn.lock().await);
        if sandbox.is_asked() || sandbox.state() != State::Sleeping {
            return Ok(());
        }
        match self.wake(sandbox).await {
            // Somebody else was faster.
            Err(DaemonError::State { .. }) if sandbox.is_asked() => Ok(()),
            Ok(()) => {
                sandbox.is_asked();
                Ok(())
            }
            error => error,
        }
    }

    /// Puts a sandbox to sleep once nothing has been done in it for its time, for as long as it has this machine.
    pub(super) fn watch_idleness(self: &Arc<Self>, sandbox: &Arc<Sandbox>, handle: &Arc<Handle>) {
        let limit = {
            let record = sandbox.record();
            record.idle_ms.filter(|_| record.auto_sleep).map(Duration::from_millis)
        };
        let Some(limit) = limit else { return };
        let (daemon, sandbox, handle) = (Arc::clone(self), Arc::downgrade(sandbox), Arc::clone(handle));
        tokio::spawn(async move {
            let mut left = limit;
            loop {
                tokio::select! {
                    _ = handle.ended() => return,
                    () = tokio::time::sleep(left.max(SHORTEST)) => {}
                }
                let Some(sandbox) = sandbox.upgrade() else { return };
                let (dozing, its_handle) = (Arc::clone(&sandbox), Arc::clone(&handle));
                let dozed = daemon.to_its_end(async move { dozing.doze(&its_handle, limit).await });
                left = dozed.await.unwrap_or_else(|error| {
                    tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "has nothing to do, and is not put to sleep");
                    limit
                });
            }
        });
    }

    /// Goes on where a sandbox fell asleep. After an error it sleeps on, if that is still possible.
    pub(crate) async fn wake(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let (daemon, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.to_its_end(async move {
            let _turn = sandbox.turn.lock().await;
            if sandbox.record().removed || sandbox.state() != State::Sleeping {
                return Err(sandbox.wrong_state(WAKE));
            }
            // From now on its memory counts.
            *sandbox.status() = Status::creating();
            let result = daemon.wake_now(&sandbox).await;
            if let Err(error) = &result {
                if sandbox.on_disk(|directory| Ok(is_asleep(directory))).await? {
                    *sandbox.status() = Status::sleeping();
                } else {
                    sandbox.has_failed(error);
                }
            }
            result
        })
        .await
    }

    async fn wake_now(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        self.admitted(sandbox)?;
        let start = Instant::now();
        let lock = sandbox.claim().await?;
        let (daemon, directory, name) = (Arc::clone(self), Arc::clone(&sandbox.directory), sandbox.name());
        let begin = blocking(move || {
            let file = directory.snapshot()?;
            directory.forget_pause()?;
            let failed = |source| DaemonError::Snapshot { action: WAKE, name: name.clone(), source };
            let summary = snapshot::verify(&file).map_err(failed)?;
            let base = if summary.has_base { directory.base()? } else { None };
            let checked = base.as_ref().map_or(Ok(()), |base| daemon.verified.check(base));
            checked.map_err(failed)?;
            Ok(Begin::Snapshot { network: summary.network, file, base, touched: None, shared: false })
        });
        let handle = self.launch(sandbox, lock, begin.await?, "").await?;
        self.is_up(sandbox, &handle, Start::from(StartedFrom::Sleep, start), Kind::Woken);
        self.find_job(sandbox, &handle);
        // Where it stays it is marked, and the next daemon removes it.
        if let Err(error) = sandbox.clear_snapshots().await {
            tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "the file that it was woken from stays");
        }
        Ok(())
    }
}

impl Sandbox {
    /// Notes that something is asked of it, if it runs and is not just being put to sleep.
    fn is_asked(&self) -> bool {
        let mut status = self.status();
        let is_awake = status.state == State::Running && !status.dozes;
        if is_awake {
            status.asked = Some(Instant::now());
        }
        is_awake
    }

    async fn sleep(self: &Arc<Self>) -> Result<(), DaemonError> {
        let _turn = self.turn.lock().await;
        self.sleep_now().await
    }

    /// The same if nothing has been done in it for `limit`; else tells how long that is off. Whoever wants something of it from the
    /// last look on waits, and wakes it.
    async fn doze(self: &Arc<Self>, handle: &Arc<Handle>, limit: Duration) -> Result<Duration, DaemonError> {
        let look = async || {
            let status = self.control(SLEEP, handle, Client::status).await?;
            Ok::<_, DaemonError>(limit.saturating_sub(Duration::from_millis(status.idle_ms)))
        };
        if self.state() != State::Running {
            return Ok(limit);
        }
        let left = look().await?;
        if !left.is_zero() {
            return Ok(left);
        }
        let _turn = self.turn.lock().await;
        {
            let mut status = self.status();
            let asked = status.asked.map(|asked| asked.elapsed()).filter(|asked| *asked < limit);
            if let Some(asked) = asked {
                return Ok(limit.saturating_sub(asked));
            }
            status.dozes = true;
        }
        let dozed = async {
            let left = look().await?;
            if left.is_zero() && self.state() == State::Running {
                self.sleep_now().await?;
            }
            Ok(left)
        };
        let dozed = dozed.await;
        self.status().dozes = false;
        dozed
    }

    /// The turn is the caller's.
    async fn sleep_now(self: &Arc<Self>) -> Result<(), DaemonError> {
        if self.record().ephemeral {
            return Err(DaemonError::Ephemeral { action: SLEEP, name: self.name() });
        }
        let handle = self.machine(SLEEP, &[State::Running, State::Paused])?;
        let paused = self.state() == State::Paused;
        // First: it tells the next daemon that what follows was left in the middle.
        let file = self.on_disk(move |directory| directory.new_snapshot(paused)).await?;
        let mut saved = self.halt_commands(SLEEP, &handle, paused).await;
        if saved.is_ok() {
            saved = self.save(&handle, file).await;
        }
        if let Err(error) = saved {
            self.stay_awake(&handle, paused).await?;
            return Err(error);
        }
        // Before its end, which is not to be taken for one by itself.
        *self.status() = Status::sleeping();
        let ended = self.end_machine(&handle).await;
        self.output.send_replace(());
        self.tell(Kind::Slept, None);
        ended
    }

    /// Has the agent halt all commands; a machine that stands still goes on for that.
    pub(super) async fn halt_commands(
        &self,
        action: &'static str,
        handle: &Arc<Handle>,
        paused: bool,
    ) -> Result<(), DaemonError> {
        if paused {
            self.control(action, handle, Client::resume).await?;
        }
        self.answered(action, handle, handle.ask(&Request::Suspend)).await
    }

    /// Whether the machine of `handle` has ended because the sandbox sleeps; by now it may be waking, or awake with another.
    pub(super) fn has_fallen_asleep(&self, handle: &Arc<Handle>) -> bool {
        let status = self.status();
        let other = status.handle.as_ref().is_some_and(|current| !Arc::ptr_eq(current, handle));
        other || matches!(status.state, State::Sleeping | State::Creating)
    }

    /// Writes the machine, paused, to the disk, and the disk's own writes with it.
    async fn save(self: &Arc<Self>, handle: &Arc<Handle>, file: File) -> Result<(), DaemonError> {
        let (directory, handle, name) = (Arc::clone(&self.directory), Arc::clone(handle), self.name());
        blocking(move || {
            let saved = handle.control_within(SAVING).and_then(|mut client| {
                client.pause()?;
                client.save(file.as_fd())
            });
            saved.map_err(|source| DaemonError::Control { action: SLEEP, name: name.clone(), source })?;
            // A machine that another release has started writes what that one knows: it must not end for a file that we cannot wake it from.
            snapshot::inspect(&file).map_err(|source| DaemonError::Snapshot {
                action: SLEEP,
                name,
                source,
            })?;
            Ok(directory.keep_snapshot()?)
        })
        .await
    }

    /// After a save that has failed: the machine goes on as it was.
    async fn stay_awake(&self, handle: &Arc<Handle>, paused: bool) -> Result<(), DaemonError> {
        self.on_disk(Directory::void_snapshot).await?;
        self.go_on(handle, paused).await?;
        self.clear_snapshots().await
    }

    /// The machine, which stands still with its commands halted, goes on, or stands still as it did before.
    pub(super) async fn go_on(&self, handle: &Arc<Handle>, paused: bool) -> Result<(), DaemonError> {
        self.control("resume", handle, Client::resume).await?;
        self.answered("resume", handle, handle.ask(&Request::Continue)).await?;
        if paused {
            self.control("pause", handle, Client::pause).await?;
        }
        Ok(())
    }

    pub(super) async fn clear_snapshots(&self) -> Result<(), DaemonError> {
        self.on_disk(Directory::clear_snapshots).await
    }

    /// Does something with its directory, where it holds nobody up.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T, DirectoryError> + Send + 'static,
    ) -> Result<T, DaemonError> {
        let directory = Arc::clone(&self.directory);
        blocking(move || Ok(work(&directory)?)).await
    }

    /// Stops one that sleeps: its memory goes.
    pub(super) async fn forget_memory(&self) -> Result<(), DaemonError> {
        self.clear_snapshots().await?;
        *self.status() = Status::stopped();
        self.tell(Kind::Stopped, None);
        Ok(())
    }

    /// Whether one that sleeps can have this network when it wakes: its machine has a device for one, or not.
    pub(super) async fn can_have(&self, mode: Mode) -> Result<(), DaemonError> {
        if mode == Mode::None {
            return Ok(());
        }
        let (directory, name) = (Arc::clone(&self.directory), self.name());
        blocking(move || match snapshot::inspect(&directory.snapshot()?) {
            Ok(summary) if summary.network => Ok(()),
            Ok(_) => Err(DaemonError::NoNetwork(name)),
            Err(source) => Err(DaemonError::Snapshot { action: "change the network of", name, source }),
        })
        .await
    }
}

/// Whether a machine that is found again stands still, `paused` being what it says of itself. One that was being written to the disk, or
/// had just been woken, when the last daemon ended goes on, and then stands still if it did before. Blocks.
pub(super) fn is_paused(directory: &Directory, handle: &Handle, paused: bool) -> bool {
    if !directory.has_snapshot() {
        return paused;
    }
    let was_paused = directory.was_paused();
    let go_on = || -> Result<(), String> {
        let text = |error: &dyn std::error::Error| chain(error);
        directory.void_snapshot().map_err(|e| text(&e))?;
        handle.control().and_then(|mut client| client.resume()).map_err(|e| text(&e))?;
        // Whether it was restored or was not saved: it does no harm to have another clock, and undoes both.
        let request = reseed(None).map_err(|e| text(&e))?;
        let asked = tokio::time::timeout(ANSWER, handle.ask(&request));
        let runtime = tokio::runtime::Handle::current();
        runtime.block_on(asked).map_err(|e| text(&e))?.map_err(|e| text(&e))?;
        if was_paused {
            handle.control().and_then(|mut client| client.pause()).map_err(|e| text(&e))?;
        }
        directory.clear_snapshots().map_err(|e| text(&e))
    };
    match go_on() {
        Ok(()) => was_paused,
        Err(error) => {
            tracing::warn!(sandbox = %directory.id(), error, "was being written to the disk, or woken, and does not go on");
            paused
        }
    }
}

/// Whether a sandbox without a machine can be woken: what a machine has gone on from is removed. Blocks.
pub(super) fn is_asleep(directory: &Directory) -> bool {
    let usable = |file: File| match snapshot::inspect(&file) {
        Ok(summary) => !summary.used,
        // Whoever wakes it is told what is wrong.
        Err(_) => true,
    };
    let asleep = directory.snapshot().is_ok_and(usable);
    if !asleep && let Err(error) = directory.clear_snapshots() {
        tracing::warn!(sandbox = %directory.id(), error = %chain(&error), "what is left of its memory stays");
    }
    asleep
}
