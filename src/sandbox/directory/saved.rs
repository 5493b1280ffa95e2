//! The files that a sandbox's machine is saved in, and goes on from.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use vmm::snapshot::mark_used;
use vmm::sparse;

use super::{BASE, BECOMING, Directory, DirectoryError, LOWER};

const SNAPSHOT: &str = "snapshot";
/// One that is being written.
const NEW_SNAPSHOT: &str = "snapshot.new";
/// The machine stood still before one was begun.
const PAUSED: &str = "paused";

impl Directory {
    /// Begins with the disk whose diff is at `disk`, and with the memory whose base is at `base`. Both stay when those are removed.
    pub(crate) fn begin_with(&self, disk: &Path, base: &Path) -> Result<(), DirectoryError> {
        for (from, name) in [(disk, LOWER), (base, BASE)] {
            let path = self.path(name);
            share(from, &path).map_err(DirectoryError::new("make", &path))?;
        }
        Ok(())
    }

    /// What its machine's memory is over; none where it was booted.
    pub(crate) fn base(&self) -> Result<Option<File>, DirectoryError> {
        let path = self.path(BASE);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(DirectoryError::new("open", &path)),
        }
    }

    /// Its machine is over nothing any more. The lock has to be ours.
    pub(crate) fn clear_base(&self) -> Result<(), DirectoryError> {
        self.clear(BASE)
    }

    /// Makes it somebody else's as well, at `path`.
    pub(crate) fn share_base(&self, path: &Path) -> Result<(), DirectoryError> {
        let base = self.path(BASE);
        share(&base, path).map_err(DirectoryError::new("share", &base))
    }

    /// A machine is about to go on from another sandbox's, and does not know yet whose it is.
    pub(crate) fn begin_to_become(&self) -> Result<(), DirectoryError> {
        self.create_file(BECOMING).map(drop)
    }

    /// It does.
    pub(crate) fn has_become(&self) -> Result<(), DirectoryError> {
        self.clear(BECOMING)
    }

    /// Whether it was left in between.
    pub(crate) fn is_becoming(&self) -> bool {
        self.path(BECOMING).exists()
    }

    /// The machine of a sandbox that sleeps, to read and to be marked.
    pub(crate) fn snapshot(&self) -> Result<File, DirectoryError> {
        let path = self.path(SNAPSHOT);
        File::options().read(true).write(true).open(&path).map_err(DirectoryError::new("open", &path))
    }

    /// An empty file for it. `paused`: what the machine is until then, and is to be where it goes on.
    pub(crate) fn new_snapshot(&self, paused: bool) -> Result<File, DirectoryError> {
        self.clear_snapshots()?;
        if paused {
            self.create_file(PAUSED)?;
        }
        self.create_file(NEW_SNAPSHOT)
    }

    /// Whether the machine stood still before it was begun.
    pub(crate) fn was_paused(&self) -> bool {
        self.path(PAUSED).exists()
    }

    /// A machine that goes on from it does not stand still.
    pub(crate) fn forget_pause(&self) -> Result<(), DirectoryError> {
        self.clear(PAUSED)
    }

    /// The file has all of the machine, on the disk: from now on the sandbox sleeps, with what its disk has at this moment.
    pub(crate) fn keep_snapshot(&self) -> Result<(), DirectoryError> {
        let keep = || {
            self.disk().map_err(io::Error::other)?.sync_data()?;
            File::open(self.path(NEW_SNAPSHOT))?.sync_data()?;
            std::fs::rename(self.path(NEW_SNAPSHOT), self.path(SNAPSHOT))?;
            File::open(&self.path)?.sync_all()
        };
        keep().map_err(DirectoryError::new("write", &self.path(SNAPSHOT)))
    }

    /// Makes the new one somebody else's, at `path`.
    pub(crate) fn give_snapshot(&self, path: &Path) -> Result<(), DirectoryError> {
        let new = self.path(NEW_SNAPSHOT);
        std::fs::rename(&new, path).map_err(DirectoryError::new("move", &new))?;
        self.forget_pause()
    }

    /// Marks it as of no use any more, if it is there.
    pub(crate) fn void_snapshot(&self) -> Result<(), DirectoryError> {
        let path = self.path(SNAPSHOT);
        match File::options().write(true).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => opened.and_then(|file| mark_used(&file)).map_err(DirectoryError::new("mark", &path)),
        }
    }

    /// Whether there is one, or part of one.
    pub(crate) fn has_snapshot(&self) -> bool {
        [SNAPSHOT, NEW_SNAPSHOT].iter().any(|name| self.path(name).exists())
    }

    /// Removes it, and what is left of one.
    pub(crate) fn clear_snapshots(&self) -> Result<(), DirectoryError> {
        [SNAPSHOT, NEW_SNAPSHOT, PAUSED].iter().try_for_each(|name| self.clear(name))
    }
}

/// Makes `to` a name of the file at `from`, which nobody ever writes to.
fn share(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::hard_link(from, to).or_else(|error| match error.kind() {
        // Of a file there are 65,000 links at most in ext4; elsewhere there may be none.
        io::ErrorKind::TooManyLinks | io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
            let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
            sparse::copy(&File::open(from)?, &copy)?;
            copy.sync_data()
        }
        _ => Err(error),
    })
}
