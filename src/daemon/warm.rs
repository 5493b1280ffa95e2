//! Warm starts: a sandbox goes on from where an earlier one of its kind had booted, instead of booting.
//!
//! The first of a kind is written to the store when its agent has come up and before anything was run in it: `warm/<key>`, a
//! [snapshot](crate::snapshots). The key is made of all that a booted machine depends on, so that one that would be another is not found.
//! Nothing of it is in memory; what nobody uses is collected.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, LazyLock, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use protocol::{Command, Config, Exec};
use rootfs_builder::image::Digest;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;

use super::create::blocking;
use super::error::DaemonError;
use super::sandbox::Sandbox;
use super::state::StartedFrom;
use super::{Daemon, chain};
use crate::agent;
use crate::sandbox::{Begin, Directory, Event, ExecError, Handle, Kernel, LaunchError, Record};
use crate::snapshots::{self, About, Draft, Place, Snapshot, SnapshotsError};

const KEEP: &str = "write for others of its kind";
/// What nobody has used for so long goes.
const UNUSED: Duration = Duration::from_hours(7 * 24);
/// A rehearsal may take so long.
const REHEARSAL: Duration = Duration::from_secs(10);
/// What a shell runs in it. By `env`, since it knows some of these itself.
const REHEARSED: &str = "env; env true; env echo; env cat /dev/null; env ls /";
/// What is read of a file of touched pages, in bytes; those that a machine writes have half of it at most.
const MAX_TOUCHED: u64 = 1 << 20;
/// All of them take this part of the store's budget at most.
const SHARE: u64 = 10;

/// What is said of the processor in /proc/cpuinfo, and what of that is another thing at each look.
const CPUINFO: &str = "/proc/cpuinfo";
const CHANGING: [&str; 6] = ["cpu MHz", "bogomips", "processor", "core id", "apicid", "initial apicid"];

/// By what a machine that has booted is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(String);

/// The processor and the kernel of this host: what a guest finds of both is in its memory.
static HOST: LazyLock<Option<Digest>> = LazyLock::new(|| {
    let cpuinfo = std::fs::read_to_string(CPUINFO).ok()?;
    // They are all the same.
    let first = cpuinfo.split("\n\n").next()?;
    let lines = first.lines().filter(|line| !CHANGING.iter().any(|key| line.starts_with(key)));
    let uname = rustix::system::uname();
    let kernel = [uname.release(), uname.version()].map(|text| text.to_string_lossy().into_owned());
    Some(Digest::of(json!([lines.collect::<Vec<_>>(), kernel]).to_string().as_bytes()))
});

/// The guest's agent.
static AGENT: LazyLock<Digest> = LazyLock::new(|| Digest::of(&agent::initramfs(&Config::default())));

impl Key {
    /// Of a sandbox that is to boot this kernel. None where it cannot be said what it depends on.
    pub(super) fn of(record: &Record, kernel: &Kernel, cmdline: &str, has_network: bool) -> Option<Self> {
        let file = kernel.file.metadata().ok()?;
        let host = HOST.as_ref()?.to_string();
        let all = json!({
            "image": record.image,
            "kernel": [file.dev(), file.ino(), file.len(), file.mtime() as u64, file.mtime_nsec() as u64],
            "cmdline": cmdline,
            "cpus": record.cpus,
            "memory": record.memory_mib,
            "network": has_network,
            "agent": AGENT.to_string(),
            "release": crate::version(),
            "host": host,
        });
        Some(Self(Digest::of(all.to_string().as_bytes()).hex()))
    }
}

impl Daemon {
    /// The first machine of a sandbox, from where one of its kind had booted, or else booted; and why it was, where that is not because
    /// it is the first of its kind.
    pub(super) async fn warm_or_cold(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lock: OwnedFd,
        kernel: Kernel,
        cmdline: &str,
        key: &Key,
    ) -> Result<(Arc<Handle>, StartedFrom, Option<String>), DaemonError> {
        // For the second attempt, if there is one: in between nobody else is to take it for one that nobody runs.
        let spare = lock.try_clone().map_err(|e| sandbox.host("lock", e))?;
        let fallback = match self.warm_start(sandbox, lock, key).await {
            Ok(handle) => return Ok((handle, StartedFrom::Warm, None)),
            // It is the first of its kind.
            Err(DaemonError::Snapshots(SnapshotsError::NotFound(_))) => None,
            Err(error) if is_of_the_snapshot(&error) => {
                let error = chain(&error);
                tracing::warn!(
                    sandbox = sandbox.id(),
                    error,
                    "boots: it could not go on from where another had"
                );
                // Others find it no more, and a new one takes its place.
                let (warm, name) = (self.warm.clone(), key.0.clone());
                let _ = blocking(move || Ok(warm.remove(&name)?)).await;
                Some(error)
            }
            Err(error) => return Err(error),
        };
        sandbox.on_disk(Directory::clear_disks).await?;
        let handle = self.launch(sandbox, spare, Begin::Kernel(kernel), cmdline).await?;
        if let Err(error) = self.keep_warm(sandbox, &handle, key).await {
            // It stands still, and nobody knows of it.
            sandbox.end_machine(&handle).await?;
            return Err(error);
        }
        Ok((handle, StartedFrom::Kernel, fallback))
    }

    async fn warm_start(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lock: OwnedFd,
        key: &Key,
    ) -> Result<Arc<Handle>, DaemonError> {
        let (warm, name) = (self.warm.clone(), key.0.clone());
        let found = blocking(move || {
            let found = warm.find(&name)?;
            warm.touch(&name);
            Ok(found)
        });
        self.clone_of(sandbox, lock, found.await?).await
    }

    /// A machine of the sandbox that goes on from a snapshot of another.
    pub(super) async fn clone_of(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lock: OwnedFd,
        snapshot: Snapshot,
    ) -> Result<Arc<Handle>, DaemonError> {
        let first = snapshot.touched.is_none().then(|| self.rehearsed.begins(&snapshot.machine)).flatten();
        let first = first.map(|begun| (begun, snapshot.place()));
        let handle = match self.go_on_as(sandbox, lock, snapshot).await {
            Ok(handle) => handle,
            Err(error) => {
                if let Some((begun, _)) = first {
                    self.rehearsed.gives_up(begun);
                }
                return Err(error);
            }
        };
        if let Some((_, place)) = first
            && let Err(error) = keep_touched(sandbox, &handle, place).await
        {
            tracing::warn!(sandbox = sandbox.id(), error, "others of its kind start as slowly");
        }
        Ok(handle)
    }

    async fn go_on_as(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lock: OwnedFd,
        snapshot: Snapshot,
    ) -> Result<Arc<Handle>, DaemonError> {
        let (daemon, directory) = (Arc::clone(self), Arc::clone(&sandbox.directory));
        let begin = blocking(move || {
            for file in [&snapshot.machine].into_iter().chain(&snapshot.base) {
                let checked = daemon.verified.check(file);
                checked.map_err(|source| DaemonError::Restore { name: snapshot.name.clone(), source })?;
            }
            // A daemon that finds it must not take it for what it is not yet.
            directory.begin_to_become()?;
            directory.begin_with(&snapshot.disk(), &snapshot.path_of_base()).map_err(|error| {
                // Somebody has just removed it.
                let is_gone = error.is_not_found().then(|| SnapshotsError::NotFound(snapshot.name.clone()));
                is_gone.map_or_else(|| error.into(), DaemonError::from)
            })?;
            let Snapshot { record, machine: file, base, touched, .. } = snapshot;
            Ok(Begin::Snapshot { file, base, touched, network: record.network, shared: true })
        });
        let handle = self.launch(sandbox, lock, begin.await?, "").await?;
        let become_one = sandbox.on_disk(Directory::has_become).await;
        if let Err(error) = become_one {
            sandbox.end_machine(&handle).await?;
            return Err(error);
        }
        Ok(handle)
    }

    /// Writes a machine in which nothing was run yet to the store, for others of its kind. An error only where it cannot go on itself.
    async fn keep_warm(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handle: &Arc<Handle>,
        key: &Key,
    ) -> Result<(), DaemonError> {
        // What its maker has given it is not for others.
        let has_its_own = {
            let record = sandbox.record();
            record.ca_certificates.is_some() || !record.hosts.is_empty()
        };
        if has_its_own || !self.has_room_for(sandbox).await || !self.begins_to_keep(key) {
            return Ok(());
        }
        let draft = match self.write_warm(sandbox, handle).await {
            Ok(Some(draft)) => draft,
            not_written => {
                self.keeping().remove(key);
                return not_written.map(drop);
            }
        };
        // What is left is for the disk to do.
        let record = snapshots::Record::of(&sandbox.record(), BTreeMap::new());
        let (daemon, key) = (Arc::clone(self), key.clone());
        let directory = Arc::clone(&sandbox.directory);
        self.work.spawn(async move {
            let (keeping, name) = (Arc::clone(&daemon), key.0.clone());
            let kept = blocking(move || {
                keeping.keep(&directory, &draft, &name, record)?;
                keeping.collect_warm()
            });
            match kept.await {
                // Somebody was faster.
                Ok(()) | Err(DaemonError::Snapshots(SnapshotsError::Taken(_))) => {}
                Err(error) => tracing::warn!(error = %chain(&error), "others of a kind have to boot"),
            }
            daemon.keeping().remove(&key);
        });
        Ok(())
    }

    /// The draft of a snapshot with all of the machine, which has gone on; none where it could not be written.
    async fn write_warm(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handle: &Arc<Handle>,
    ) -> Result<Option<Arc<Draft>>, DaemonError> {
        // What it reads from the disk is in the memory of those that go on from it.
        if !rehearse(sandbox, handle).await {
            return Ok(None);
        }
        let drafting = Arc::clone(self);
        let draft = blocking(move || Ok(Arc::new(drafting.warm.draft()?)));
        // It tells the next daemon that what follows was left in the middle.
        let file = sandbox.on_disk(|directory| directory.new_snapshot(false));
        let written = async {
            let (draft, file): (_, File) = (draft.await?, file.await?);
            // Nothing that the shell may have left goes on in others before they are themselves.
            sandbox.halt_commands(KEEP, handle, false).await?;
            self.copy(sandbox, handle, file, Arc::clone(&draft)).await?;
            Ok::<_, DaemonError>(draft)
        };
        let written = written.await;
        sandbox.go_on(handle, false).await?;
        let moved = match written {
            Ok(draft) => {
                let path = draft.machine();
                sandbox.on_disk(move |directory| directory.give_snapshot(&path)).await.map(|()| draft)
            }
            Err(error) => Err(error),
        };
        match moved {
            Ok(draft) => Ok(Some(draft)),
            Err(error) => {
                tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "others of its kind have to boot");
                sandbox.clear_snapshots().await.map(|()| None)
            }
        }
    }

    /// Whether the disk has room for all that a machine may hold: where there is less, users need it.
    async fn has_room_for(&self, sandbox: &Sandbox) -> bool {
        let (store, needed) = (self.store.clone(), sandbox.record().memory_mib.bytes());
        blocking(move || Ok(store.available()? >= needed)).await.unwrap_or_default()
    }

    /// False if somebody is at it, or has done it.
    fn begins_to_keep(&self, key: &Key) -> bool {
        !self.warm.is_there(&key.0) && self.keeping().insert(key.clone())
    }

    fn keeping(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what no sandbox can begin with any more, what nobody has used for long, and what is too much. Blocks.
    pub(super) fn collect_warm(&self) -> Result<(), DaemonError> {
        let (all, unreadable) = self.warm.list()?;
        let used = |about: &About| self.warm.used(&about.name).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut all: Vec<(SystemTime, About)> = all.into_iter().map(|about| (used(&about), about)).collect();
        all.sort_by_key(|(used, _)| Reverse(*used));
        let mut left = self.config.gc_budget.value.0 / SHARE;
        all.retain(|(used, about)| {
            let (fits, idle) = (left.checked_sub(about.bytes), used.elapsed().unwrap_or_default());
            left = fits.unwrap_or(left);
            fits.is_none() || idle > UNUSED || self.store.rootfs(&about.record.image).is_err()
        });
        for name in unreadable.into_iter().chain(all.into_iter().map(|(_, about)| about.name)) {
            match self.warm.remove(&name) {
                Ok(()) => tracing::info!(name, "collected, of the warm starts"),
                // Somebody was faster.
                Err(SnapshotsError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Runs what most commands begin with, as the image wants it, and nothing of a user's: programs are looked for, and read with what they
/// need. An image that has none has nothing to be rehearsed. False if it has not ended in time.
async fn rehearse(sandbox: &Sandbox, handle: &Handle) -> bool {
    let exec = {
        let record = sandbox.record();
        // In somebody's snapshot they may be somebody's.
        let line = if record.snapshot.is_some() { ":" } else { REHEARSED };
        let env = record.config.env.iter().filter_map(|variable| variable.split_once('='));
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Exec { env, ..Exec::new(Command::Argv(["/bin/sh", "-c", line].map(str::to_owned).into())) }
    };
    let run = async {
        let mut exec = handle.exec(exec).await?;
        while !matches!(exec.output.next().await?, Event::Exit(_)) {}
        Ok::<_, ExecError>(())
    };
    tokio::time::timeout(REHEARSAL, run).await.is_ok()
}

/// Remembers which pages the first machine that goes on from a snapshot has written to when a command has run in it.
async fn keep_touched(
    sandbox: &Sandbox,
    handle: &Arc<Handle>,
    place: io::Result<Place>,
) -> Result<(), String> {
    rehearse(sandbox, handle).await;
    let handle = Arc::clone(handle);
    let keep = move || -> Result<(), Box<dyn std::error::Error>> {
        let mut touched = File::from(memfd_create("touched", MemfdFlags::CLOEXEC)?);
        handle.control()?.touched(touched.as_fd())?;
        touched.rewind()?;
        let mut bytes = Vec::new();
        // The process of the machine may have written anything.
        touched.take(MAX_TOUCHED).read_to_end(&mut bytes)?;
        Ok(place?.keep_touched(&bytes)?)
    };
    let kept = tokio::task::spawn_blocking(move || keep().map_err(|error| chain(&*error)));
    kept.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Whether another snapshot, or none, might do.
fn is_of_the_snapshot(error: &DaemonError) -> bool {
    match error {
        DaemonError::Restore { .. } | DaemonError::Snapshots(_) => true,
        DaemonError::Launch { source, .. } => matches!(
            source,
            LaunchError::Ended(_)
                | LaunchError::Silent(_)
                | LaunchError::Agent(_)
                | LaunchError::Identity(_)
                | LaunchError::Old
                | LaunchError::Version(_)
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rootfs_builder::image::ImageConfig;

    use super::*;

    #[test]
    fn a_key_is_of_all_that_a_booted_machine_depends_on() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = |content: &[u8]| {
            let path = dir.path().join("vmlinux");
            std::fs::write(&path, content).unwrap();
            Kernel { file: File::open(&path).unwrap(), path, embedded: false }
        };
        let record = |image: &[u8], cpus: u8, memory: u32| {
            let (cpus, memory) = (cpus.try_into().unwrap(), memory.try_into().unwrap());
            Record::new(
                Digest::of(image),
                "debian".into(),
                ImageConfig::default(),
                1 << 20,
                "/vmlinux".into(),
                cpus,
                memory,
            )
        };
        let (one, a) = (kernel(b"kernel"), record(b"a", 1, 512));
        let key = |record: &Record, cmdline: &str, network| Key::of(record, &one, cmdline, network).unwrap();
        let first = key(&a, "", true);
        let mut named = a.clone();
        named.name = "dev".into();
        named.env.insert("A".to_owned(), "b".to_owned());
        assert_eq!(key(&named, "", true), first, "whose it is and what runs in it makes no difference");
        for (other, what) in [
            (key(&record(b"b", 1, 512), "", true), "image"),
            (key(&record(b"a", 2, 512), "", true), "CPUs"),
            (key(&record(b"a", 1, 256), "", true), "memory"),
            (key(&a, "debug", true), "command line"),
            (key(&a, "", false), "network"),
            (Key::of(&a, &kernel(b"another kernel"), "", true).unwrap(), "kernel"),
        ] {
            assert_ne!(other, first, "{what}");
        }
    }
}
