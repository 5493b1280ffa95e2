//! A private directory in `ingest`, for a stream whose digests are known only at its end.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::lock::{Mode, flock};
use super::{Store, StoreError, create_new};

/// Removed when dropped. Its owner holds a lock on the directory itself, by which gc tells it from the leftovers of a
/// process that was killed.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    _lock: File,
}

impl Store {
    /// A new directory, and an end to those whose owners are gone; its files can be handed to [`Store::adopt`].
    pub(crate) fn scratch(&self) -> Result<Scratch, StoreError> {
        // Nobody else's directory is seen before it is locked, nor ours.
        let _store = self.lock_store(Mode::Exclusive)?;
        // A process that was killed may have left gigabytes that this one needs.
        self.sweep_abandoned(&mut |_| {})?;
        let ingest = self.ingest_dir();
        let dir = tempfile::Builder::new()
            .prefix("stream-")
            .tempdir_in(&ingest)
            .map_err(StoreError::io("create a directory in", &ingest))?;
        let lock = File::open(dir.path())
            .and_then(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).map(|()| file))
            .map_err(StoreError::io("lock", dir.path()))?;
        Ok(Scratch { dir, _lock: lock })
    }
}

impl Scratch {
    /// The path of the file with this number.
    pub(crate) fn path(&self, number: usize) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    /// Bytes on disk of all files.
    pub(crate) fn allocated(&self) -> u64 {
        super::gc::allocated_in(self.dir.path())
    }

    /// A new file.
    pub(crate) fn create(&self, number: usize) -> Result<File, StoreError> {
        create_new(&self.path(number))
    }
}

/// Is the owner of the scratch directory at `path` gone?
pub(super) fn is_abandoned(path: &Path) -> bool {
    File::open(path).is_ok_and(|dir| flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok())
}
