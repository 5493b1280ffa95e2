//! From what a user wants to a sandbox that runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rootfs_builder::store::Image;
use tokio::sync::OwnedMutexGuard;
use vmm::spec::{Cpus, MemoryMib};

use super::error::DaemonError;
use super::events::Kind;
use super::life::{remove, supervise};
use super::sandbox::Sandbox;
use super::state::Status;
use super::{Daemon, ImageWanted, chain, name};
use crate::config::{Origin, Setting};
use crate::sandbox::{Access, Begin, Command, Job, Kernel, Launch, Port, Record, boot};

/// What a user wants. What is not given is the configuration's.
#[derive(Clone, Debug, Default)]
pub(crate) struct New {
    pub(crate) name: Option<String>,
    pub(crate) image: ImageWanted,
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

/// A sandbox that has its place, and no machine yet.
struct Prepared {
    sandbox: Arc<Sandbox>,
    turn: OwnedMutexGuard<()>,
    lock: OwnedFd,
    kernel: Kernel,
}

impl Daemon {
    /// Makes a sandbox; returns when commands can be run in it. Where its image is here it goes on when nobody waits for it any
    /// more. After an error
    /// nothing of it remains.
    pub(crate) async fn create(self: &Arc<Self>, new: New) -> Result<Arc<Sandbox>, DaemonError> {
        let (daemon, image) = (Arc::clone(self), self.image_of(&new).await?);
        self.to_its_end(async move { daemon.make(new, image).await }).await
    }

    /// The same of an ephemeral one, which goes with what is returned, or when nobody waits for that any more.
    pub(crate) async fn create_owned(self: &Arc<Self>, new: New) -> Result<Owned, DaemonError> {
        let (daemon, image) = (Arc::clone(self), self.image_of(&new).await?);
        let new = New { ephemeral: true, ..new };
        self.to_its_end(async move {
            let sandbox = daemon.make(new, image).await?;
            Ok(Owned { daemon, sandbox })
        })
        .await
    }

    async fn image_of(self: &Arc<Self>, new: &New) -> Result<Image, DaemonError> {
        // What is wrong is told before an image is pulled.
        if let Some(name) = &new.name {
            name::check(name)?;
        }
        self.obtain(new.image.clone()).await
    }

    async fn make(self: &Arc<Self>, new: New, image: Image) -> Result<Arc<Sandbox>, DaemonError> {
        let (preparing, cmdline) = (Arc::clone(self), new.cmdline.clone());
        let Prepared { sandbox, turn: _turn, lock, kernel } =
            blocking(move || preparing.prepare(new, &image)).await?;
        let result = self.boot(&sandbox, lock, Begin::Kernel(kernel), &cmdline).await;
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

    /// Everything but the machine.
    fn prepare(&self, new: New, image: &Image) -> Result<Prepared, DaemonError> {
        let named = new.kernel.map(|path| Setting { value: Some(path), origin: Origin::Flag("--kernel") });
        let kernel = Kernel::find(named.as_ref().unwrap_or(&self.config.kernel), self.store.root())?;
        let cpus = new.cpus.unwrap_or(self.config.cpus.value);
        let memory = new.memory.unwrap_or(self.config.memory.value.mib());
        let mut record = Record::new(image, &kernel, cpus, memory);
        record.ephemeral = new.ephemeral;
        record.env = new.env;
        record.labels = new.labels;
        record.set_access(new.network);
        record.hosts = new.hosts;
        record.ca_certificates = new.ca_certificates;
        record.ttl_ms = new.ttl_ms;
        record.idle_ms = new.idle_ms;
        record.ports = new.ports;
        let job = new.job.map(|command| command.of(&record));
        record.job = job.map(|exec| Job { exec, removes: new.removes, pid: None, exit: None });

        let (directory, lock) = self.sandboxes.create().inspect_err(|_| self.leaves_something())?;
        let directory = Arc::new(directory);
        let taken = self.take_place(&directory, record, new.name);
        let written = taken.and_then(|(sandbox, turn)| {
            let record = sandbox.record().clone();
            match directory.write_record(&record) {
                Ok(()) => {
                    sandbox.tell(Kind::Created, None);
                    Ok((sandbox, turn))
                }
                Err(error) => {
                    self.table().remove(&sandbox);
                    Err(error.into())
                }
            }
        });
        match written {
            Ok((sandbox, turn)) => Ok(Prepared { sandbox, turn, lock, kernel }),
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

    /// Starts the machine of a sandbox whose turn we have. Its state is `creating`; it is another one afterwards only if this
    /// succeeds.
    pub(super) async fn boot(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lock: OwnedFd,
        begin: Begin,
        cmdline: &str,
    ) -> Result<(), DaemonError> {
        let wakes = matches!(begin, Begin::Snapshot { .. });
        // First: what is taken is told before anything is started.
        let ports = self.listen(sandbox).await?;
        let record = sandbox.record().clone();
        let (store, derivation) = (self.store.clone(), record.image);
        // Only now that the record is written does the store's collection leave the image alone.
        let rootfs = blocking(move || Ok(store.rootfs(&derivation)?)).await?;
        let launch = Launch { record: &record, rootfs: &rootfs, begin, cmdline, ports };
        let start = Instant::now();
        let launched = boot(&sandbox.directory, lock, launch).await;
        if !wakes {
            self.metrics.boot(start.elapsed(), launched.is_ok());
        }
        let mut handle = launched.map_err(|source| {
            let (name, image) = (record.name.clone(), record.image_name.clone());
            DaemonError::Launch { name, image, source }
        })?;
        handle.traffic = self.metrics.traffic();
        let handle = Arc::new(handle);
        if wakes && let Err(error) = sandbox.reseed(&handle).await {
            sandbox.end_machine(&handle).await?;
            return Err(error);
        }
        *sandbox.status() = Status::up(Arc::clone(&handle), false);
        sandbox.tell(if wakes { Kind::Woken } else { Kind::Started }, None);
        tracing::info!(sandbox = sandbox.id(), name = record.name, image = record.image_name, "runs");
        supervise(sandbox, Arc::clone(&handle));
        if wakes {
            self.find_job(sandbox, &handle);
            // Where it stays it is marked, and the next daemon removes it.
            if let Err(error) = sandbox.clear_snapshots().await {
                tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "the file that it was woken from stays");
            }
            return Ok(());
        }
        let started = self.start_job(sandbox, &handle).await;
        if started.is_err() {
            sandbox.status().stopping = true;
            sandbox.end_machine(&handle).await?;
        }
        started
    }
}

/// Runs what blocks where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DaemonError> + Send + 'static,
) -> Result<T, DaemonError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| DaemonError::Ending)?
}
