//! From what a user wants to a sandbox that runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use net::policy::Mode;
use rootfs_builder::store::Image;
use tokio::sync::OwnedMutexGuard;
use vmm::spec::{Cpus, MemoryMib};

use super::error::DaemonError;
use super::events::Kind;
use super::life::{remove, supervise};
use super::sandbox::Sandbox;
use super::state::{Start, StartedFrom, Status};
use super::warm::Key;
use super::{Daemon, ImageWanted, chain, name};
use crate::config::{Origin, Setting};
use crate::sandbox::{Access, Begin, Command, Handle, Job, Kernel, Launch, Port, Record, boot};
use crate::snapshots::{self, Snapshot};

/// What a user wants. What is not given is the configuration's.
#[derive(Clone, Debug, Default)]
pub(crate) struct New {
    pub(crate) name: Option<String>,
    pub(crate) image: ImageWanted,
    /// A snapshot to go on from, in place of an image and of what else makes a machine.
    pub(crate) snapshot: Option<String>,
    /// Whether it may go on from where an earlier one of its kind had booted.
    pub(crate) warm: Option<bool>,
    pub(crate) cpus: Option<Cpus>,
    pub(crate) memory: Option<MemoryMib>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// What it may reach.
    pub(crate) network: Access,
    /// Names that its name server answers by itself.
    pub(crate) hosts: BTreeMap<String, IpAddr>,
    /// Authorities, in PEM, that its programs trust beside the image's.
    pub(crate) ca_certificates: Option<Arc<str>>,
    /// The machine ends so many ms after each start.
    pub(crate) ttl_ms: Option<u64>,
    /// It ends when nothing is done in it for so many ms.
    pub(crate) idle_ms: Option<u64>,
    /// Then it is put to sleep instead, and wakes when it is asked for something.
    pub(crate) auto_sleep: bool,
    /// Its machine does not outlive this daemon.
    pub(crate) ephemeral: bool,
    /// Another kernel than the configuration's, for the first start.
    pub(crate) kernel: Option<PathBuf>,
    /// More for the kernel's command line, at the first start.
    pub(crate) cmdline: String,
    /// Ports of this machine that lead into the guest.
    pub(crate) ports: Vec<Port>,
    /// What it is there for.
    pub(crate) job: Option<Command>,
    /// Whether it is removed when that has ended.
    pub(crate) removes: bool,
}

/// A sandbox that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Owned {
    daemon: Arc<Daemon>,
    sandbox: Arc<Sandbox>,
}

impl Owned {
    pub(crate) fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.daemon.table().remove(&self.sandbox) {
            self.sandbox.record().removed = true;
            self.daemon.release(Arc::clone(&self.sandbox));
        }
    }
}

/// What a sandbox is made from.
enum Source {
    Image(Box<Image>),
    Snapshot(Box<Snapshot>),
}

/// How its first machine begins.
enum First {
    Boot {
        kernel: Kernel,
        cmdline: String,
        /// By what a machine that has booted so is known, where others may go on from it.
        warm: Option<Key>,
    },
    Snapshot(Box<Snapshot>),
}

/// A sandbox that has its place, and no machine yet.
struct Prepared {
    sandbox: Arc<Sandbox>,
    turn: OwnedMutexGuard<()>,
    lock: OwnedFd,
    first: First,
    /// Its record, which need not be on the disk yet.
    record: File,
}

impl Daemon {
    /// Makes a sandbox; returns when commands can be run in it. Where its image is here it goes on when nobody waits for it any
    /// more. After an error nothing of it remains.
    pub(crate) async fn create(self: &Arc<Self>, new: New) -> Result<Arc<Sandbox>, DaemonError> {
        let (daemon, source) = (Arc::clone(self), self.source_of(&new).await?);
        self.to_its_end(async move { daemon.make(new, source).await }).await
    }

    /// The same of an ephemeral one, which goes with what is returned, or when nobody waits for that any more.
    pub(crate) async fn create_owned(self: &Arc<Self>, new: New) -> Result<Owned, DaemonError> {
        let (daemon, source) = (Arc::clone(self), self.source_of(&new).await?);
        let new = New { ephemeral: true, ..new };
        self.to_its_end(async move {
            let sandbox = daemon.make(new, source).await?;
            Ok(Owned { daemon, sandbox })
        })
        .await
    }

    async fn source_of(self: &Arc<Self>, new: &New) -> Result<Source, DaemonError> {
        // What is wrong is told before an image is pulled.
        if let Some(name) = &new.name {
            name::check(name)?;
        }
        let Some(name) = &new.snapshot else {
            return Ok(Source::Image(Box::new(self.obtain(new.image.clone()).await?)));
        };
        let snapshot = self.snapshot(name.clone()).await?;
        fits(&snapshot, new)?;
        Ok(Source::Snapshot(Box::new(snapshot)))
    }

    async fn make(self: &Arc<Self>, new: New, source: Source) -> Result<Arc<Sandbox>, DaemonError> {
        let began = Instant::now();
        let preparing = Arc::clone(self);
        let Prepared { sandbox, turn: _turn, lock, first, record } =
            blocking(move || preparing.prepare(new, source)).await?;
        let result = self.begin(&sandbox, lock, first, record, began).await;
        if let Err(error) = &result {
            sandbox.tell(Kind::Failed, Some(&chain(error)));
            self.table().remove(&sandbox);
            // A daemon that finds it must not take it for one that is kept.
            sandbox.record().removed = true;
            let _ = sandbox.write_record().await;
            if matches!(remove(&sandbox.directory).await, Ok(true)) {
                sandbox.tell(Kind::Removed, None);
            } else {
                // What the machine could not be made for may be what its removal lacks: files, above all.
                self.release(Arc::clone(&sandbox));
            }
        }
        result.map(|()| sandbox)
    }

    /// Starts the first machine of a sandbox, and its job.
    async fn begin(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lock: OwnedFd,
        first: First,
        record: File,
        began: Instant,
    ) -> Result<(), DaemonError> {
        let started = async {
            Ok::<_, DaemonError>(match first {
                First::Boot { kernel, cmdline, warm: None } => {
                    let handle = self.launch(sandbox, lock, Begin::Kernel(kernel), &cmdline).await?;
                    (handle, StartedFrom::Kernel, None)
                }
                First::Boot { kernel, cmdline, warm: Some(key) } => {
                    self.warm_or_cold(sandbox, lock, kernel, &cmdline, &key).await?
                }
                First::Snapshot(snapshot) => {
                    let handle = self.clone_of(sandbox, lock, *snapshot).await?;
                    (handle, StartedFrom::Snapshot, None)
                }
            })
        };
        // The disk takes its time for the record while the machine starts.
        let kept = sandbox.on_disk(move |directory| directory.keep_record(&record));
        let (kept, started) = tokio::join!(kept, started);
        let (handle, from, fallback) = started?;
        if let Err(error) = kept {
            sandbox.end_machine(&handle).await?;
            return Err(error);
        }
        let start = Start { fallback, ..Start::from(from, began) };
        self.begins(sandbox, &handle, start).await
    }

    /// Everything but the machine.
    fn prepare(&self, new: New, source: Source) -> Result<Prepared, DaemonError> {
        let (mut record, first) = match source {
            Source::Image(image) => {
                let named =
                    new.kernel.map(|path| Setting { value: Some(path), origin: Origin::Flag("--kernel") });
                let kernel = Kernel::find(named.as_ref().unwrap_or(&self.config.kernel), self.store.root())?;
                let record = Record::new(
                    image.reference.image,
                    image.reference.name.to_string(),
                    image.record.config.clone(),
                    image.record.size_bytes,
                    kernel.path.clone(),
                    new.cpus.unwrap_or(self.config.cpus.value),
                    new.memory.unwrap_or(self.config.memory.value.mib()),
                );
                let has_network = new.network.policy.mode() != Mode::None;
                let warm = new.warm.unwrap_or(self.config.warm.value);
                let warm = warm.then(|| Key::of(&record, &kernel, &new.cmdline, has_network)).flatten();
                (record, First::Boot { kernel, cmdline: new.cmdline, warm })
            }
            Source::Snapshot(snapshot) => {
                let of = snapshot.record.clone();
                let mut record = Record::new(
                    of.image,
                    of.image_name,
                    of.config,
                    of.disk_bytes,
                    of.kernel,
                    of.cpus,
                    of.memory_mib,
                );
                record.snapshot = Some(snapshot.name.clone());
                (record, First::Snapshot(snapshot))
            }
        };
        record.ephemeral = new.ephemeral;
        record.env = new.env;
        record.labels = new.labels;
        record.set_access(new.network);
        record.hosts = new.hosts;
        record.ca_certificates = new.ca_certificates;
        record.ttl_ms = new.ttl_ms;
        record.idle_ms = new.idle_ms;
        record.auto_sleep = new.auto_sleep;
        record.ports = new.ports;
        let job = new.job.map(|command| command.of(&record));
        record.job = job.map(|exec| Job { exec, removes: new.removes, pid: None, exit: None });

        let (directory, lock) = self.sandboxes.create().inspect_err(|_| self.leaves_something())?;
        let directory = Arc::new(directory);
        let taken = self.take_place(&directory, record, new.name);
        let written = taken.and_then(|(sandbox, turn)| {
            let record = sandbox.record().clone();
            match directory.write_first_record(&record) {
                Ok(record) => {
                    sandbox.tell(Kind::Created, None);
                    Ok((sandbox, turn, record))
                }
                Err(error) => {
                    self.table().remove(&sandbox);
                    Err(error.into())
                }
            }
        });
        match written {
            Ok((sandbox, turn, record)) => Ok(Prepared { sandbox, turn, lock, first, record }),
            Err(error) => {
                drop(lock);
                if !matches!(directory.remove(), Ok(true)) {
                    self.leaves_something();
                }
                Err(error)
            }
        }
    }

    /// Enters the sandbox into the table, if name and limits allow it. Its turn is the caller's: nobody who finds it can do anything
    /// with it before it is up.
    fn take_place(
        &self,
        directory: &Arc<crate::sandbox::Directory>,
        mut record: Record,
        wanted: Option<String>,
    ) -> Result<(Arc<Sandbox>, OwnedMutexGuard<()>), DaemonError> {
        let mut table = self.table();
        let limit = self.config.max_sandboxes.value;
        if table.len() >= limit {
            return Err(DaemonError::TooMany(limit));
        }
        self.admit(&table, record.memory_mib)?;
        if let Some(name) = &wanted
            && let Some(other) = table.named(name)
        {
            return Err(DaemonError::NameTaken { name: name.clone(), id: other.id().to_owned() });
        }
        let made_up = || {
            let id = directory.id().as_str();
            let mut names = (0..9).map(|attempt| name::generate(id, attempt));
            // The last one holds the whole id.
            names.find(|name| table.named(name).is_none()).unwrap_or_else(|| format!("sandbox-{id}"))
        };
        record.name = wanted.unwrap_or_else(made_up);
        let sandbox = Arc::new(Sandbox::new(
            Arc::clone(directory),
            record,
            Status::creating(),
            self.events.clone(),
            Arc::clone(&self.metrics),
        ));
        let turn = Arc::clone(&sandbox.turn).try_lock_owned();
        // Nobody else knows of it.
        let turn = turn.map_err(|_| DaemonError::Ending)?;
        table.insert(Arc::clone(&sandbox));
        Ok((sandbox, turn))
    }

    pub(super) fn admit(&self, table: &super::table::Table, memory: MemoryMib) -> Result<(), DaemonError> {
        let (used, wanted) = (table.memory_mib(), u64::from(u32::from(memory)));
        let limit = self.config.max_memory.value.0 >> 20;
        if used + wanted > limit {
            return Err(DaemonError::TooMuchMemory { used, wanted, limit });
        }
        Ok(())
    }

    /// Starts the machine of a sandbox whose turn we have. Its state is `creating`, and stays that.
    pub(super) async fn launch(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lock: OwnedFd,
        begin: Begin,
        cmdline: &str,
    ) -> Result<Arc<Handle>, DaemonError> {
        let restores = matches!(begin, Begin::Snapshot { .. });
        // First: what is taken is told before anything is started.
        let ports = self.listen(sandbox).await?;
        let record = sandbox.record().clone();
        let (store, derivation) = (self.store.clone(), record.image);
        // Only now that the record is written does the store's collection leave the image alone.
        let rootfs = blocking(move || Ok(store.rootfs(&derivation)?)).await?;
        let launch = Launch { record: &record, rootfs: &rootfs, begin, cmdline, ports };
        // It is never closed.
        let _place = self.launches.acquire().await;
        let start = Instant::now();
        let launched = boot(&sandbox.directory, lock, launch).await;
        self.metrics.start(restores, start.elapsed(), launched.is_ok());
        let mut handle = launched.map_err(|source| {
            let (name, image) = (record.name.clone(), record.image_name.clone());
            DaemonError::Launch { name, image, source }
        })?;
        handle.traffic = self.metrics.traffic();
        Ok(Arc::new(handle))
    }

    /// The machine of a sandbox has come up: whoever finds it can run commands in it.
    pub(super) fn is_up(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handle: &Arc<Handle>,
        start: Start,
        kind: Kind,
    ) {
        let Start { from, ms, .. } = start;
        *sandbox.status() = Status { start: Some(start), ..Status::up(Arc::clone(handle), false) };
        sandbox.tell(kind, None);
        let record = sandbox.record();
        tracing::info!(
            sandbox = sandbox.id(),
            name = record.name,
            image = record.image_name,
            ?from,
            ms,
            "runs"
        );
        drop(record);
        supervise(sandbox, Arc::clone(handle));
        self.watch_idleness(sandbox, handle);
    }

    /// The same of one that has begun anew: its job starts with it.
    pub(super) async fn begins(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handle: &Arc<Handle>,
        start: Start,
    ) -> Result<(), DaemonError> {
        self.is_up(sandbox, handle, start, Kind::Started);
        let started = self.start_job(sandbox, handle).await;
        if started.is_err() {
            sandbox.status().stopping = true;
            sandbox.end_machine(handle).await?;
        }
        started
    }
}

/// Whether what is wanted is what the snapshot is of.
fn fits(snapshot: &Snapshot, new: &New) -> Result<(), DaemonError> {
    let snapshots::Record { cpus, memory_mib, network, .. } = &snapshot.record;
    let machine = |cpus: Cpus, memory: MemoryMib| {
        format!("a machine with {} CPUs and {} MiB of memory", cpus.get(), u32::from(memory))
    };
    let wanted = (new.cpus.unwrap_or(*cpus), new.memory.unwrap_or(*memory_mib));
    if wanted != (*cpus, *memory_mib) {
        let (has, wanted) = (machine(*cpus, *memory_mib), machine(wanted.0, wanted.1));
        return Err(DaemonError::OtherMachine { name: snapshot.name.clone(), has, wanted });
    }
    if !network && new.network.policy.mode() != Mode::None {
        return Err(DaemonError::NoNetworkIn(snapshot.name.clone()));
    }
    Ok(())
}

/// Runs what blocks where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DaemonError> + Send + 'static,
) -> Result<T, DaemonError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| DaemonError::Ending)?
}
