//! What a sandbox has on disk, and who may remove it.
//!
//! ```text
//! sandboxes/<id>/lock          held (flock) by the process of the machine for as long as it lives
//!                spec.json     what the sandbox was made of, see [`super::record`]
//!                disk.diff     what the guest has written to its disk, where it began with the image's
//!                disk.upper    the same where it began with a snapshot's,
//!                disk.lower    which is this one: a link to it, never written
//!                becoming      a machine has gone on from a snapshot, and may not know yet that it is this sandbox's
//!                snapshot      its machine while it sleeps, see [`vmm::snapshot`]
//!                memory.base   what that is over, where it began with a snapshot: a link to that one's machine, or to what that is over
//!                snapshot.new  one that is being written
//!                paused        it stood still before its machine was written
//!                exit.json     why the machine has ended; empty until then, and if it was killed
//!                vmm.log       what the process of the machine has said
//!                control.sock  see [`vmm::control`]
//!                vsock.sock    see [`super::connect`]
//! ```
//!
//! Whoever makes a sandbox locks it before anybody else can look at it, and hands that very descriptor to the process of the
//! machine: a lock that can be taken means that nobody runs the sandbox any more. It is taken before anything is removed.
//! One that is kept is started again by whoever takes that lock; what its record says of it is never believed against the lock.
//! The directory `sandboxes` has a lock of its own, on itself: shared while a sandbox is made and has no locked lock yet,
//! exclusive while the leftovers of the dead are looked for.

mod saved;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, fallocate, flock};

use super::id::SandboxId;
use super::record::{Fate, Record};
use crate::lock::is_at;

const LOCK: &str = "lock";
const SPEC: &str = "spec.json";
const DISK: &str = "disk.diff";
const LOWER: &str = "disk.lower";
const UPPER: &str = "disk.upper";
const BECOMING: &str = "becoming";
/// A record on its way; what is left of one that was cut off is of no use.
const NEW_SPEC: &str = "spec.json.new";
const BASE: &str = "memory.base";
/// More bytes than an exit.json has: a reason, and 8 KiB of the console.
const EXIT_ROOM: u64 = 16 << 10;
/// A longer record is none, in bytes.
const MAX_RECORD: u64 = 8 << 20;

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

/// An attempt to take a sandbox's lock.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Nobody runs the sandbox, and nobody can while this is held.
    Ours(OwnedFd),
    /// Somebody runs it.
    Held,
    /// Somebody has begun to remove it, or died before the lock was made: see [`Sandboxes::sweep`].
    NoLock,
    /// Whoever had the lock before has removed this directory, and another may have got the name.
    Replaced,
}

impl DirectoryError {
    /// Whether something is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

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
        let mut result = Ok(());
        for directory in self.list()? {
            if directory.fate() != Some(Fate::Keep)
                && let Err(error) = directory.remove()
            {
                // One that stays does not keep the others.
                result = Err(error);
            }
        }
        result
    }

    /// Those that there are, whatever state they are in.
    pub(crate) fn list(&self) -> Result<Vec<Directory>, DirectoryError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(DirectoryError::new("list", &self.root)(e)),
        };
        let mut directories = Vec::new();
        for entry in entries {
            let entry = entry.map_err(DirectoryError::new("list", &self.root))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<SandboxId>().ok()) else {
                continue;
            };
            match Directory::open(id, entry.path()) {
                Ok(directory) => directories.push(directory),
                // Its owner has removed it in the meantime, or it is none.
                Err(e)
                    if matches!(e.source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(directories)
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

    /// A new, empty file that has room on the disk for what a machine says at its end: that tells of a full disk, too.
    pub(crate) fn create_exit_file(&self, name: &str) -> Result<File, DirectoryError> {
        let file = self.create_file(name)?;
        match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, EXIT_ROOM) {
            // The file system knows nothing of that.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(file),
            Err(error) => Err(DirectoryError::new("reserve room for", &self.path(name))(error.into())),
        }
    }

    /// A new socket that listens.
    pub(crate) fn listen(&self, name: &str) -> Result<UnixListener, DirectoryError> {
        UnixListener::bind(self.socket(name)).map_err(DirectoryError::new("listen at", &self.path(name)))
    }

    /// An error of something that was done to the sandbox as a whole.
    pub(crate) fn error(&self, action: &'static str, source: io::Error) -> DirectoryError {
        DirectoryError { action, path: self.path.clone(), source }
    }

    /// Removes what an earlier machine has left under `name`. The lock has to be ours.
    pub(crate) fn clear(&self, name: &str) -> Result<(), DirectoryError> {
        match std::fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(DirectoryError::new("remove", &self.path(name))(e))
            }
            _ => Ok(()),
        }
    }

    /// What the guest has written to its disk, blank at first; to read and write.
    pub(crate) fn disk(&self) -> Result<File, DirectoryError> {
        let path = self.path(if self.path(LOWER).exists() { UPPER } else { DISK });
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(&path).map_err(DirectoryError::new("open", &path))
    }

    /// What was on its disk before the guest has written to it, beside the image's; to read. None where it began with the image.
    pub(crate) fn lower_disk(&self) -> Result<Option<File>, DirectoryError> {
        let path = self.path(LOWER);
        match File::open(&path) {
            // Without it the other one makes no sense.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.path(UPPER).exists() => Ok(None),
            opened => opened.map(Some).map_err(DirectoryError::new("open", &path)),
        }
    }

    /// As it was before it had a disk. The lock has to be ours.
    pub(crate) fn clear_disks(&self) -> Result<(), DirectoryError> {
        for name in [UPPER, LOWER, DISK, BASE, BECOMING] {
            self.clear(name)?;
        }
        Ok(())
    }

    /// Whether it ever had a machine: each begins with marking the disk as its own.
    pub(crate) fn had_a_machine(&self) -> bool {
        [DISK, UPPER].iter().any(|disk| self.path(disk).metadata().is_ok_and(|disk| disk.len() > 0))
    }

    /// Whole or not at all: a reader finds the record of before, or this one. One writes at a time.
    pub(crate) fn write_record(&self, record: &Record) -> Result<(), DirectoryError> {
        self.put_record(record, File::sync_data).map(drop)
    }

    /// The same of a sandbox that is being made. It is on the disk once the file that is returned was [kept](Self::keep_record): one that has
    /// none after a failure of the host was never made.
    pub(crate) fn write_first_record(&self, record: &Record) -> Result<File, DirectoryError> {
        self.put_record(record, |_| Ok(()))
    }

    /// Returns when a first record is on the disk.
    pub(crate) fn keep_record(&self, file: &File) -> Result<(), DirectoryError> {
        file.sync_data().map_err(DirectoryError::new("write", &self.path(SPEC)))
    }

    /// `before`: what is done before the record has its name.
    fn put_record(
        &self,
        record: &Record,
        before: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<File, DirectoryError> {
        let write = || {
            let bytes = serde_json::to_vec(record)?;
            if bytes.len() as u64 > MAX_RECORD {
                let why = format!("it has {} bytes, where {MAX_RECORD} are allowed", bytes.len());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            let new = self.path(NEW_SPEC);
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&bytes)?;
            before(&file)?;
            std::fs::rename(new, self.path(SPEC))?;
            Ok(file)
        };
        let written = write();
        if written.is_err() {
            let _ = self.clear(NEW_SPEC);
        }
        written.map_err(DirectoryError::new("write", &self.path(SPEC)))
    }

    /// Removes what a writer of the record has left who was killed at it.
    pub(crate) fn clear_new_record(&self) -> Result<(), DirectoryError> {
        self.clear(NEW_SPEC)
    }

    /// The record; an error as well where it is of a version that this program does not know.
    pub(crate) fn read_record(&self) -> Result<Record, DirectoryError> {
        let read = || Record::parse(&self.record_bytes()?).map_err(io::Error::other);
        read().map_err(DirectoryError::new("read", &self.path(SPEC)))
    }

    /// What is to become of it once nobody runs it. Of a sandbox without a whole record nobody was ever told.
    pub(crate) fn fate(&self) -> Option<Fate> {
        match self.record_bytes() {
            Ok(bytes) => Fate::parse(&bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            // Nobody knows what it was.
            Err(_) => Some(Fate::Keep),
        }
    }

    fn record_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(SPEC))?.take(MAX_RECORD).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Takes the lock, if nobody has it.
    pub(crate) fn claim(&self) -> Result<Claim, DirectoryError> {
        let lock = match File::open(self.path(LOCK)) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Claim::NoLock),
            Err(e) => return Err(DirectoryError::new("open", &self.path(LOCK))(e)),
        };
        match rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) if is_at(&lock, &self.path(LOCK)) => Ok(Claim::Ours(lock.into())),
            Ok(()) => Ok(Claim::Replaced),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Claim::Held),
            Err(e) => Err(DirectoryError::new("lock", &self.path(LOCK))(e.into())),
        }
    }

    /// Removes it, unless somebody runs the sandbox. Returns whether it is gone.
    pub(crate) fn remove(&self) -> Result<bool, DirectoryError> {
        let _lock = match self.claim()? {
            Claim::Ours(lock) => Some(lock),
            Claim::NoLock => None,
            Claim::Held => return Ok(false),
            Claim::Replaced => return Ok(true),
        };
        match std::fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(DirectoryError::new("remove", &self.path)(e))
            }
            _ => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests;
