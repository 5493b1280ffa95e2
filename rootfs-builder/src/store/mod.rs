//! Images on this machine: content-addressed, shared by several processes, whole or absent at any moment.
//!
//! ```text
//! store.json                  the format's version
//! blobs/sha256/<hex>          verified layers, compressed as they came; a cache
//! images/<derivation>.ext4    root file systems, read-only; .json beside it: the record that makes it count
//! refs/<hex>.json             which image a name means; <hex> is the digest of the name's key
//! ingest/                     what is not yet whole: <hex>.part, <derivation>.ext4.part, stream-*/, record-*.tmp
//! locks/                      see `lock`
//! ```
//!
//! A file becomes visible by `fdatasync`, `rename`, `fsync` of the directory, and things are made in the order blob,
//! image, image record, reference, and removed in the opposite one. A process may be killed between any two steps: what
//! it leaves in `ingest` is continued or overwritten by the next pull, or swept by [`Store::collect`] and before the next
//! archive is read.

mod blob;
mod error;
mod gc;
mod image;
mod lock;
mod record;
mod roots;
mod scratch;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use blob::{Ingest, Part};
pub use error::StoreError;
pub(crate) use error::is_full;
pub use gc::{Budget, Removal, Removed, Report};
pub use image::{Image, ImageRecordParts, Listing, Pending};
pub use record::{ImageRecord, Recipe, RefRecord};
pub(crate) use scratch::Scratch;

use crate::image::Digest;
use crate::reference::ImageName;
use lock::{Lock, Mode};

/// The format of the store that this program reads and writes.
const FORMAT: u32 = 1;

/// The store of images. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    root: Arc<Path>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Format {
    format: u32,
}

impl Store {
    /// Opens the store at `root`, an absolute path, and makes what is missing of it.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(StoreError::io("find", root))?;
        let store = Self { root: root.into() };
        for dir in ["", "blobs/sha256", "ingest", "images", "refs", "locks"] {
            let dir = store.root.join(dir);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(StoreError::io("create the directory", &dir))?;
        }
        store.check_format()?;
        Ok(store)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.root.join("store.json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                let Format { format: found } = serde_json::from_slice(&bytes)
                    .map_err(|source| StoreError::DamagedFormat { path, supported: FORMAT, source })?;
                if found == FORMAT {
                    return Ok(());
                }
                Err(StoreError::Format { path: self.root.to_path_buf(), found, supported: FORMAT })
            }
            // Two processes that make a new store at once write the same.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let _lock = self.lock_store(Mode::Shared)?;
                record::write(&self.ingest_dir(), &path, &Format { format: FORMAT })
            }
            Err(e) => Err(StoreError::io("read", &path)(e)),
        }
    }

    /// Bytes that this user can still write to the store's file system.
    pub fn available(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(&*self.root)
            .map_err(|e| StoreError::io("inspect the file system of", &self.root)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The error of a store that is full, told while the `written` bytes that go with the failure are still there.
    pub(crate) fn no_space(&self, what: String, needed: u64, written: u64) -> StoreError {
        let available = self.available().unwrap_or(0).saturating_add(written);
        // It did not fit, so whatever was estimated, it is more than there was.
        let needed = needed.max(available.saturating_add(1 << 20));
        StoreError::NoSpace { what, path: self.root.to_path_buf(), needed, available }
    }

    fn ingest_dir(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn part_path(&self, digest: &Digest) -> PathBuf {
        self.ingest_dir().join(format!("{}.part", digest.hex()))
    }

    fn image_path(&self, derivation: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.ext4", derivation.hex()))
    }

    fn image_part_path(&self, derivation: &Digest) -> PathBuf {
        self.ingest_dir().join(format!("{}.ext4.part", derivation.hex()))
    }

    fn image_record_path(&self, derivation: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", derivation.hex()))
    }

    fn ref_path(&self, name: &ImageName) -> PathBuf {
        self.root.join("refs").join(format!("{}.json", name.digest().hex()))
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(name)
    }

    fn blob_lock_path(&self, digest: &Digest) -> PathBuf {
        self.lock_path(&format!("blob-{}", digest.hex()))
    }

    fn image_lock_path(&self, derivation: &Digest) -> PathBuf {
        self.lock_path(&format!("image-{}", derivation.hex()))
    }

    /// Held for the length of a look-up or a removal, never for that of a download.
    fn lock_store(&self, mode: Mode) -> Result<Lock, StoreError> {
        Lock::wait(&self.lock_path("store"), mode, || {})
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A new, empty file to write and read back.
fn create_new(path: &std::path::Path) -> Result<std::fs::File, StoreError> {
    let mut options = std::fs::File::options();
    options.read(true).write(true).create_new(true).open(path).map_err(StoreError::io("create", path))
}

/// Marks `file` as used now: for least recently used, and for the grace time. Access times are not to be had on every
/// file system, so this is the modification time.
fn touch(file: &std::fs::File) {
    // A file that cannot be touched is collected a little early, nothing worse.
    let _ = file.set_modified(SystemTime::now());
}

#[cfg(test)]
mod tests;
