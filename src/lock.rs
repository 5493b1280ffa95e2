//! `daemon.lock` in a store: its daemon holds it (flock) for as long as it lives, and tells in it where it listens.
//!
//! Clients find the daemon of a store by this file and not by their environment, which may be another one than the daemon's:
//! in cron there is no XDG_RUNTIME_DIR. What the file says counts only while the lock is held.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const NAME: &str = "daemon.lock";
/// Whoever looks holds the lock for some µs; a daemon that holds it longer is one.
const LOOKING: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(10);
/// A longer notice is none, in bytes.
const MAX_NOTICE: usize = 16 << 10;

/// What a daemon tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Notice {
    /// Its release.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// Whether it comes again by itself: a command has started it, or systemd. One that a user has started is the user's to end.
    #[serde(default)]
    pub(crate) replaceable: bool,
}

/// Who has a store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Nobody,
    /// A daemon that does not listen yet, or not any more.
    Silent,
    Daemon(Notice),
}

/// The lock, held.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock of the store at `store`. None if another daemon has it. Blocks for some ms then.
    pub(crate) fn take(store: &Path) -> io::Result<Option<Self>> {
        let end = Instant::now() + LOOKING;
        let file = loop {
            let mut options = File::options();
            let file =
                options.create(true).truncate(false).read(true).write(true).mode(0o600).open(path(store))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // A file that has just been removed, by `voidrun reset`, is nobody's lock.
                Ok(()) if is_at(&file, &path(store)) => break file,
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < end => {
                    std::thread::sleep(PAUSE);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let lock = Self { file };
        // What a killed daemon has left.
        lock.clear()?;
        Ok(Some(lock))
    }

    /// Tells clients where to come.
    pub(crate) fn publish(&self, notice: &Notice) -> io::Result<()> {
        self.clear()?;
        // In one piece. Whoever sees a part of it looks again.
        self.file.write_all_at(&serde_json::to_vec(notice)?, 0)
    }

    /// Tells them that nobody listens.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

impl Owner {
    /// That of the store at `store`, which may not be there yet.
    pub(crate) fn of(store: &Path) -> io::Result<Self> {
        let file = match File::open(path(store)) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Self::Nobody);
            }
            file => file?,
        };
        match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockShared)) {
            Ok(()) => return Ok(Self::Nobody),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e.into()),
        }
        let mut bytes = vec![0; MAX_NOTICE];
        let length = file.read_at(&mut bytes, 0)?;
        Ok(serde_json::from_slice(&bytes[..length]).map_or(Self::Silent, Self::Daemon))
    }
}

/// Whether that file is the one at `path`, and was not removed or replaced.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Its path, for people as well.
pub(crate) fn path(store: &Path) -> PathBuf {
    store.join(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_counts_only_while_it_is_held() {
        let store = tempfile::tempdir().unwrap();
        let owner = || Owner::of(store.path()).unwrap();
        assert_eq!(Owner::of(&store.path().join("none")).unwrap(), Owner::Nobody);
        assert_eq!(owner(), Owner::Nobody);
        let lock = Lock::take(store.path()).unwrap().unwrap();
        assert_eq!(owner(), Owner::Silent);
        assert!(Lock::take(store.path()).unwrap().is_none());
        let notice = |socket: &str| Notice {
            version: "1.2.3".into(),
            pid: 7,
            socket: socket.into(),
            replaceable: true,
        };
        lock.publish(&notice("/run/a/long/path/voidrun.sock")).unwrap();
        lock.publish(&notice("/x.sock")).unwrap();
        assert_eq!(owner(), Owner::Daemon(notice("/x.sock")));
        // As a killed one leaves it.
        drop(lock);
        assert_eq!(owner(), Owner::Nobody);
        let lock = Lock::take(store.path()).unwrap().unwrap();
        assert_eq!(owner(), Owner::Silent);
        lock.publish(&notice("/x.sock")).unwrap();
        lock.clear().unwrap();
        assert_eq!(owner(), Owner::Silent);
    }

    #[test]
    fn who_looks_does_not_keep_a_daemon_from_it() {
        let store = tempfile::tempdir().unwrap();
        drop(Lock::take(store.path()).unwrap());
        let file = File::open(path(store.path())).unwrap();
        flock(&file, FlockOperation::LockShared).unwrap();
        let looking = std::thread::spawn(move || {
            std::thread::sleep(LOOKING / 6);
            drop(file);
        });
        assert!(Lock::take(store.path()).unwrap().is_some());
        looking.join().unwrap();
    }
}
