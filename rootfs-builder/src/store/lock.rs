//! Advisory locks on files that may be unlinked.
//!
//! There are three kinds, always taken in this order, so that no two processes can wait for each other:
//!
//! 1. `image-<derivation>`: whoever converts this image, from the look-up until the reference is written;
//! 2. `blob-<hex>`: whoever brings this blob; its holder waits for no lock but the store's;
//! 3. `store`: shared while records are read or written and files are opened, exclusive for removal (gc, rm).
//!    Its exclusive holder only *tries* the other two.
//!
//! The kernel drops a lock when its holder dies, by SIGKILL too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::StoreError;

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Who else may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Others in this mode.
    Shared,
    /// Nobody.
    Exclusive,
}

impl Lock {
    /// Waits for the lock at `path`; calls `waiting` once when somebody holds it.
    pub(crate) fn wait(path: &Path, mode: Mode, waiting: impl FnOnce()) -> Result<Self, StoreError> {
        if let Some(lock) = Self::attempt(path, mode)? {
            return Ok(lock);
        }
        waiting();
        let operation = match mode {
            Mode::Shared => FlockOperation::LockShared,
            Mode::Exclusive => FlockOperation::LockExclusive,
        };
        loop {
            // `None`: the file was replaced while we waited.
            if let Some(lock) = Self::take(path, operation)? {
                return Ok(lock);
            }
        }
    }

    /// The lock at `path` if nobody holds it.
    pub(crate) fn attempt(path: &Path, mode: Mode) -> Result<Option<Self>, StoreError> {
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        Self::take(path, operation)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Option<Self>, StoreError> {
        loop {
            let file = open(path, operation).map_err(StoreError::io("open the lock", path))?;
            match flock(&file, operation) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(StoreError::io("lock", path)(e)),
            }
            // Between open and lock somebody may have unlinked the file: then this is a lock on nothing.
            if is_at(&file, path) {
                return Ok(Some(Self { _file: file }));
            }
        }
    }

    /// Unlinks the lock's file and releases it. Whoever waited for it finds out and makes a new one.
    pub(crate) fn remove(self, path: &Path) {
        let Self { _file: held } = self;
        // A lock file that stays does no harm.
        let _ = std::fs::remove_file(path);
        drop(held);
    }
}

/// The lock's file, made if need be. Of a store that may only be read a reader opens what is there.
fn open(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let reader = matches!(operation, FlockOperation::LockShared | FlockOperation::NonBlockingLockShared);
    match opened {
        Err(e)
            if reader
                && matches!(
                    e.kind(),
                    io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
                ) =>
        {
            File::open(path).map_err(|_| e)
        }
        opened => opened,
    }
}

/// Locks a directory or file that has a name of its own and is never replaced.
pub(crate) fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation)).map_err(io::Error::from)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => held.dev() == there.dev() && held.ino() == there.ino(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let shared = Lock::attempt(&path, Mode::Shared).unwrap().unwrap();
        assert!(Lock::attempt(&path, Mode::Shared).unwrap().is_some());
        assert!(Lock::attempt(&path, Mode::Exclusive).unwrap().is_none());
        drop(shared);
        let exclusive = Lock::attempt(&path, Mode::Exclusive).unwrap();
        assert!(exclusive.is_some());
        assert!(Lock::attempt(&path, Mode::Shared).unwrap().is_none());
    }

    #[test]
    fn a_lock_on_an_unlinked_file_is_not_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::attempt(&path, Mode::Exclusive).unwrap().unwrap();
        let (announce, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope
                .spawn(|| Lock::wait(&path, Mode::Exclusive, move || announce.send(()).unwrap()).unwrap());
            waits.recv().unwrap();
            first.remove(&path);
            let second = waiter.join().unwrap();
            // The waiter holds the file that is there now.
            assert!(Lock::attempt(&path, Mode::Exclusive).unwrap().is_none());
            drop(second);
        });
    }
}
