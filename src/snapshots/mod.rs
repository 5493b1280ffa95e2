//! Snapshots as the store keeps them: a machine with its disk, from which any number of sandboxes begin.
//!
//! ```text
//! snapshots/<name>/snapshot.json  what it is of, see [`record`]
//!                  machine        memory and the state of vCPUs and devices, see [`vmm::snapshot`]
//!                  machine.base   the machine of another snapshot, which that is over, if it is over one
//!                  disk.diff      what the disk had beside the image
//!                  touched        which pages of its memory a machine writes to that goes on from it; it comes with the first one
//!           .<random>/            is being made, or removed; of nobody when a daemon begins
//! ```
//!
//! Nothing in a snapshot is written to once it has its name, and only `touched` comes later. A sandbox that is made from one has links of
//! its own to its files, so that the snapshot can be removed at any time.

mod record;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

pub(crate) use record::Record;

const RECORD: &str = "snapshot.json";
const MACHINE: &str = "machine";
const BASE: &str = "machine.base";
const DISK: &str = "disk.diff";
const TOUCHED: &str = "touched";
/// A longer record is none, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// All snapshots in one directory, which need not be there.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    root: PathBuf,
}

/// What is to be told of a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) record: Record,
    /// Bytes that it takes on the disk.
    pub(crate) bytes: u64,
}

/// The directory of a snapshot, whatever its name means by now.
#[derive(Debug)]
pub(crate) struct Place(OwnedFd);

/// A snapshot that can be gone on from.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) record: Record,
    /// Open for reading.
    pub(crate) machine: File,
    /// What that is over, open for reading.
    pub(crate) base: Option<File>,
    /// All of it is of one snapshot.
    directory: OwnedFd,
    /// Which pages are written to first, where that is known: what [`vmm::control::Client::touched`] has written.
    pub(crate) touched: Option<File>,
    /// Bytes that it takes on the disk.
    pub(crate) bytes: u64,
}

/// One that is being made. It goes when it is dropped and was not kept.
#[derive(Debug)]
pub(crate) struct Draft {
    root: PathBuf,
    path: PathBuf,
}

/// A snapshot that cannot be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotsError {
    #[error("there is no snapshot {0}: `voidrun snapshot ls` lists those there are")]
    NotFound(String),
    #[error("there is a snapshot {0} already: remove it, or take another name")]
    Taken(String),
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotsError {
    let path = path.to_owned();
    move |source| SnapshotsError::Io { action, path, source }
}

impl Snapshots {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A place for a new one.
    pub(crate) fn draft(&self) -> Result<Draft, SnapshotsError> {
        Ok(Draft { root: self.root.clone(), path: self.unnamed()? })
    }

    /// A new directory that is no snapshot.
    fn unnamed(&self) -> Result<PathBuf, SnapshotsError> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(&self.root).map_err(failed("create the directory", &self.root))?;
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| failed("name a snapshot in", &self.root)(e.into()))?;
        let path = self.root.join(format!(".{:016x}", u64::from_ne_bytes(bytes)));
        builder.recursive(false).create(&path).map_err(failed("create the directory", &path))?;
        Ok(path)
    }

    /// Those there are, by name; and the names of those that cannot be read, of which the log tells why.
    pub(crate) fn list(&self) -> Result<(Vec<About>, Vec<String>), SnapshotsError> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for name in self.names()?.into_iter().filter(|name| !name.starts_with('.')) {
            match self.find(&name) {
                Ok(snapshot) => found.push(snapshot.about()),
                // Somebody has just removed it.
                Err(_) if !self.is_there(&name) => {}
                Err(error) => {
                    tracing::warn!(name, error = %crate::daemon::chain(&error), "a snapshot cannot be read");
                    unreadable.push(name);
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((found, unreadable))
    }

    /// Whether there is one that is called `name`, of use or not.
    pub(crate) fn is_there(&self, name: &str) -> bool {
        self.root.join(name).exists()
    }

    fn names(&self) -> Result<Vec<String>, SnapshotsError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("list", &self.root)(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.root))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    /// The one that is called `name`, which has to be a name.
    pub(crate) fn find(&self, name: &str) -> Result<Snapshot, SnapshotsError> {
        let path = self.root.join(name);
        let not_found = |path: &Path, error: Errno| match error {
            Errno::NOENT => SnapshotsError::NotFound(name.to_owned()),
            error => failed("open", path)(error.into()),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| not_found(&path, e))?;
        let open = |file: &str| {
            let opened = openat(&directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            opened.map(File::from).map_err(|e| not_found(&path.join(file), e))
        };
        let mut json = Vec::new();
        let read = open(RECORD)?.take(MAX_RECORD).read_to_end(&mut json);
        let record = read.and_then(|_| Record::parse(&json).map_err(io::Error::other));
        let record = record.map_err(failed("read", &path.join(RECORD)))?;
        let (machine, disk) = (open(MACHINE)?, open(DISK)?);
        let optional = |file: &str| match open(file) {
            Err(SnapshotsError::NotFound(_)) => Ok(None),
            opened => opened.map(Some),
        };
        let (base, touched) = (optional(BASE)?, optional(TOUCHED)?);
        let size = |file: &File| file.metadata().map_or(0, |found| found.blocks() * 512);
        // What several have in common none counts.
        let last = base.as_ref().filter(|base| base.metadata().is_ok_and(|found| found.nlink() == 1));
        let bytes = size(&machine) + size(&disk) + last.map_or(0, size);
        Ok(Snapshot { name: name.to_owned(), record, machine, base, directory, touched, bytes })
    }

    /// Removes it. What was made from it stays.
    pub(crate) fn remove(&self, name: &str) -> Result<(), SnapshotsError> {
        let (path, unnamed) = (self.root.join(name), self.unnamed()?);
        // It loses its name in one step: a directory takes the place of an empty one.
        match std::fs::rename(&path, &unnamed) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let _ = std::fs::remove_dir(&unnamed);
                return Err(SnapshotsError::NotFound(name.to_owned()));
            }
            renamed => renamed.map_err(failed("remove", &path))?,
        }
        std::fs::remove_dir_all(&unnamed).map_err(failed("remove", &unnamed))
    }

    /// Removes what somebody has left who was killed at it. Nobody else may be making or removing one.
    pub(crate) fn sweep(&self) -> Result<(), SnapshotsError> {
        for name in self.names()? {
            let path = self.root.join(&name);
            if name.starts_with('.') {
                std::fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
                continue;
            }
            let files = std::fs::read_dir(&path).into_iter().flatten().flatten();
            for file in files.filter(|file| file.path().file_stem().is_some_and(|stem| stem == TOUCHED)) {
                let is_whole = file.file_name() == TOUCHED;
                if !is_whole {
                    std::fs::remove_file(file.path()).map_err(failed("remove", &file.path()))?;
                }
            }
        }
        Ok(())
    }

    /// When the one that is called `name` was made, or [used](Self::touch) last.
    pub(crate) fn used(&self, name: &str) -> Option<SystemTime> {
        self.root.join(name).join(RECORD).metadata().and_then(|found| found.modified()).ok()
    }

    /// Tells that it is used now.
    pub(crate) fn touch(&self, name: &str) {
        let touched = File::open(self.root.join(name).join(RECORD));
        // At worst it is taken for one that nobody uses.
        let _ = touched.and_then(|record| record.set_modified(SystemTime::now()));
    }
}

impl Place {
    /// Keeps which pages are written to first. Of two at once the last one is kept.
    pub(crate) fn keep_touched(&self, touched: &[u8]) -> io::Result<()> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let new = format!("{TOUCHED}.{:016x}", u64::from_ne_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.0, &new, flags, Mode::RUSR | Mode::WUSR)?);
        let written = file.write_all(touched).and_then(|()| file.sync_data());
        let written = written.and_then(|()| Ok(renameat(&self.0, &new, &self.0, TOUCHED)?));
        written.inspect_err(|_| {
            let _ = unlinkat(&self.0, &new, AtFlags::empty());
        })
    }
}

impl Snapshot {
    /// What is to be told of it.
    pub(crate) fn about(self) -> About {
        let Self { name, record, bytes, .. } = self;
        About { name, record, bytes }
    }

    pub(crate) fn place(&self) -> io::Result<Place> {
        Ok(Place(self.directory.try_clone()?))
    }

    /// The path of its disk's diff, for as long as this is there.
    pub(crate) fn disk(&self) -> PathBuf {
        self.path(DISK)
    }

    /// The same of what snapshots of its machines are over.
    pub(crate) fn path_of_base(&self) -> PathBuf {
        self.path(if self.base.is_some() { BASE } else { MACHINE })
    }

    fn path(&self, file: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{file}", self.directory.as_raw_fd()).into()
    }
}

impl Draft {
    /// The file for its disk's diff, empty.
    pub(crate) fn disk(&self) -> Result<File, SnapshotsError> {
        Self::create(&self.path.join(DISK))
    }

    fn create(path: &Path) -> Result<File, SnapshotsError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(path).map_err(failed("create", path))
    }

    /// Where its machine is to be, of which the file is made elsewhere.
    pub(crate) fn machine(&self) -> PathBuf {
        self.path.join(MACHINE)
    }

    /// Where what that is over is to be, if it is over something.
    pub(crate) fn base(&self) -> PathBuf {
        self.path.join(BASE)
    }

    /// A file for it that is made here, empty.
    pub(crate) fn create_machine(&self) -> Result<File, SnapshotsError> {
        Self::create(&self.machine())
    }

    pub(crate) fn open_machine(&self) -> Result<File, SnapshotsError> {
        File::open(self.machine()).map_err(failed("open", &self.machine()))
    }

    /// Makes a snapshot of it: all of it is on the disk before it has the name.
    pub(crate) fn keep(&self, name: &str, record: &Record) -> Result<(), SnapshotsError> {
        let (path, root) = (self.root.join(name), &self.root);
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path.join(RECORD))?;
            file.write_all(&serde_json::to_vec(record)?)?;
            for file in [RECORD, MACHINE, DISK] {
                File::open(self.path.join(file))?.sync_all()?;
            }
            File::open(&self.path)?.sync_all()
        };
        write().map_err(failed("write", &path))?;
        match std::fs::rename(&self.path, &path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                return Err(SnapshotsError::Taken(name.to_owned()));
            }
            renamed => renamed.map_err(failed("write", &path))?,
        }
        File::open(root).and_then(|root| root.sync_all()).map_err(failed("write", &path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // One that was kept is not there any more.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests;
