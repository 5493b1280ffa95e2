//! What a sandbox has on disk, and who may remove it.
//!
//! ```text
//! sandboxes/<id>/lock          held (flock) by the process of the machine for as long as it lives
//!                spec.json     what the sandbox was made of
//!                disk.diff     what the guest has written to its disk
//!                exit.json     why the machine has ended; empty until then, and if it was killed
//!                vmm.log       what the process of the machine has said
//!                control.sock  see [`vmm::control`]
//!                vsock.sock    see [`super::connect`]
//! ```
//!
//! Whoever makes a sandbox locks it before anybody else can look at it, and hands that very descriptor to the process of the
//! machine: a lock that can be taken means that nobody runs the sandbox any more. It is taken before anything is removed.
//! The directory `sandboxes` has a lock of its own, on itself: shared while a sandbox is made and has no locked lock yet,
//! exclusive while the leftovers of the dead are looked for.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rootfs_builder::image::Digest;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};
use vmm::spec::{Cpus, MemoryMib};

use super::id::SandboxId;
use super::launch::Launch;

const LOCK: &str = "lock";
const SPEC: &str = "spec.json";
const RECORD_VERSION: u32 = 1;

/// A directory that cannot be made, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(crate) struct DirectoryError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// All sandboxes of a store.
#[derive(Clone, Debug)]
pub(crate) struct Sandboxes {
    root: PathBuf,
}

/// The directory of one sandbox.
#[derive(Debug)]
pub(crate) struct Directory {
    id: SandboxId,
    path: PathBuf,
    /// The directory itself: a way to its sockets that is short whatever the path.
    fd: OwnedFd,
}

/// `spec.json`. The store's garbage collection reads `image`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// The derivation of the image whose file system the sandbox has.
    image: Digest,
    /// What the image was called.
    image_name: String,
    kernel: PathBuf,
    cpus: Cpus,
    memory_mib: MemoryMib,
    /// Whether it is nobody's any more once its machine has ended.
    ephemeral: bool,
}

impl Record {
    pub(crate) fn new(launch: &Launch<'_>) -> Self {
        Self {
            version: RECORD_VERSION,
            image: launch.image.reference.image,
            image_name: launch.image.reference.name.to_string(),
            kernel: launch.kernel.path.clone(),
            cpus: launch.cpus,
            memory_mib: launch.memory,
            ephemeral: true,
        }
    }
}

impl DirectoryError {
    fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

impl Sandboxes {
    /// Those of the store at `store`.
    pub(crate) fn new(store: &Path) -> Self {
        Self { root: store.join("sandboxes") }
    }

    /// Makes the directory of a new sandbox, and its lock, which is held until every copy of the descriptor is closed.
    pub(crate) fn create(&self) -> Result<(Directory, OwnedFd), DirectoryError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(DirectoryError::new("create the directory", &self.root))?;
        let _making =
            self.locked(FlockOperation::LockShared).map_err(DirectoryError::new("lock", &self.root))?;
        let (id, path) = loop {
            let id = SandboxId::random().map_err(DirectoryError::new("name a sandbox in", &self.root))?;
            let path = self.root.join(id.as_str());
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made.map_err(DirectoryError::new("create the directory", &path))?;
                    break (id, path);
                }
            }
        };
        let made = Directory::open(id, path.clone()).and_then(|directory| {
            let lock = directory.create_file(LOCK)?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|e| DirectoryError::new("lock", &directory.path(LOCK))(e.into()))?;
            Ok((directory, lock.into()))
        });
        if made.is_err() {
            // What is left all the same has no lock that is held, and goes with the next sweep.
            let _ = std::fs::remove_dir_all(&path);
        }
        made
    }

    /// Removes what nobody runs any more and nobody wants to keep.
    pub(crate) fn sweep(&self) -> Result<(), DirectoryError> {
        let _sweeping = match self.locked(FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => lock,
            // There are none, or somebody is making one or sweeping: the next command comes soon.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => {
                return Ok(());
            }
            Err(e) => return Err(DirectoryError::new("lock", &self.root)(e)),
        };
        for entry in std::fs::read_dir(&self.root).map_err(DirectoryError::new("list", &self.root))? {
            let entry = entry.map_err(DirectoryError::new("list", &self.root))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<SandboxId>().ok()) else {
                continue;
            };
            match Directory::open(id, entry.path()) {
                Ok(directory) if directory.is_to_keep() => {}
                Ok(directory) => {
                    directory.remove()?;
                }
                // Its owner has removed it in the meantime.
                Err(e) if e.source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A lock on the directory itself, which is never replaced.
    fn locked(&self, operation: FlockOperation) -> io::Result<File> {
        let directory = File::open(&self.root)?;
        rustix::io::retry_on_intr(|| flock(&directory, operation))?;
        Ok(directory)
    }
}

impl Directory {
    fn open(id: SandboxId, path: PathBuf) -> Result<Self, DirectoryError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|e| DirectoryError::new("open the directory", &path)(e.into()))?;
        Ok(Self { id, path, fd })
    }

    pub(crate) fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The path of a file in it, for people.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path of a socket in it: a socket's address has room for 107 bytes (unix(7)), which the directory's path may exceed.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()).into()
    }

    /// A new, empty file to read and write.
    pub(crate) fn create_file(&self, name: &str) -> Result<File, DirectoryError> {
        let path = self.path(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(DirectoryError::new("create", &path))
    }

    /// A new socket that listens.
    pub(crate) fn listen(&self, name: &str) -> Result<UnixListener, DirectoryError> {
        UnixListener::bind(self.socket(name)).map_err(DirectoryError::new("listen at", &self.path(name)))
    }

    /// An error of something that was done to the sandbox as a whole.
    pub(crate) fn error(&self, action: &'static str, source: io::Error) -> DirectoryError {
        DirectoryError { action, path: self.path.clone(), source }
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<(), DirectoryError> {
        let file = self.create_file(SPEC)?;
        serde_json::to_writer(file, record)
            .map_err(|e| DirectoryError::new("write", &self.path(SPEC))(e.into()))
    }

    /// Of a sandbox without a whole record the machine has never been started.
    fn is_to_keep(&self) -> bool {
        let record = std::fs::read(self.path(SPEC)).ok();
        record
            .and_then(|json| serde_json::from_slice::<Record>(&json).ok())
            .is_some_and(|record| !record.ephemeral)
    }

    /// Removes it, unless somebody runs the sandbox. Returns whether it is gone.
    pub(crate) fn remove(&self) -> Result<bool, DirectoryError> {
        let lock = match File::open(self.path(LOCK)) {
            Ok(lock) => Some(lock),
            // Somebody has begun to remove it, or died before the lock was made: see `Sandboxes::sweep`.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(DirectoryError::new("open", &self.path(LOCK))(e)),
        };
        if let Some(lock) = &lock {
            match rustix::io::retry_on_intr(|| flock(lock, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
                Err(e) => return Err(DirectoryError::new("lock", &self.path(LOCK))(e.into())),
            }
            // Whoever had the lock before may have removed this directory, and another have got the name.
            if !is_at(lock, &self.path(LOCK)) {
                return Ok(true);
            }
        }
        match std::fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(DirectoryError::new("remove", &self.path)(e))
            }
            _ => Ok(true),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => held.dev() == there.dev() && held.ino() == there.ino(),
        _ => false,
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
