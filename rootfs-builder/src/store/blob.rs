//! Blobs: verified bytes under their digest, and the way there.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::lock::{Lock, Mode};
use super::record::sync_parent;
use super::{Store, StoreError, touch};
use crate::image::{Descriptor, Digest};

/// What became of the wish for a blob.
#[derive(Debug)]
pub enum Ingest {
    /// It is in the store. The open file stays readable whatever gc does.
    Present(File),
    /// The caller brings it.
    Missing(Part),
}

/// A blob on its way in, locked against other processes. Dropped, it stays as `.part`, to be continued.
#[derive(Debug)]
pub struct Part {
    store: Store,
    digest: Digest,
    size: u64,
    file: File,
    path: PathBuf,
    _lock: Lock,
}

impl Store {
    /// The blob, open for reading, if it is there with the right size.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<Option<File>, StoreError> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(StoreError::io("inspect", &path))?;
                if !found.is_file() || found.len() != size {
                    return Ok(None);
                }
                touch(&file);
                Ok(Some(file))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("open", &path)(e)),
        }
    }

    /// Bytes that are still to be written until the blob is here; what an earlier download has brought counts.
    pub(crate) fn missing_bytes(&self, blob: &Descriptor) -> Result<u64, StoreError> {
        let present = self.blob(&blob.digest, blob.size)?.is_some();
        let part = || super::gc::allocated(&self.part_path(&blob.digest));
        Ok(if present { 0 } else { blob.size.saturating_sub(part()) })
    }

    /// The blob, or the right to bring it. Waits for another process that brings the same one, and calls `waiting`
    /// before it does. Blocks.
    pub fn ingest(&self, blob: &Descriptor, waiting: impl FnOnce()) -> Result<Ingest, StoreError> {
        if let Some(file) = self.blob(&blob.digest, blob.size)? {
            return Ok(Ingest::Present(file));
        }
        let lock = Lock::wait(&self.blob_lock_path(&blob.digest), Mode::Exclusive, waiting)?;
        if let Some(file) = self.blob(&blob.digest, blob.size)? {
            return Ok(Ingest::Present(file));
        }
        let path = self.part_path(&blob.digest);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        Ok(Ingest::Missing(Part {
            store: self.clone(),
            digest: blob.digest,
            size: blob.size,
            file,
            path,
            _lock: lock,
        }))
    }

    /// Takes the file at `from`, in the store's own `ingest`, whose bytes the caller has hashed, as the blob. Blocks.
    pub(crate) fn adopt(&self, blob: &Descriptor, from: &Path) -> Result<File, StoreError> {
        let _lock = Lock::wait(&self.blob_lock_path(&blob.digest), Mode::Exclusive, || {})?;
        if let Some(file) = self.blob(&blob.digest, blob.size)? {
            return Ok(file);
        }
        let file = File::open(from).map_err(StoreError::io("open", from))?;
        self.commit_blob(&blob.digest, blob.size, &file, from)?;
        Ok(file)
    }

    /// Removes those of `blobs` whose bytes are no longer what their names say (a disk that failed, a file that was
    /// edited), and returns how many there were, whoever removed them.
    pub fn remove_damaged(&self, blobs: &[Descriptor]) -> Result<usize, StoreError> {
        let mut removed = 0;
        for blob in blobs {
            let path = self.blob_path(&blob.digest);
            let damaged = |file| match crate::source::hash(file) {
                Ok((digest, _)) => Ok(digest != blob.digest),
                Err(error) => Err(StoreError::io("read", &path)(error)),
            };
            let Some(file) = self.blob(&blob.digest, blob.size)? else { continue };
            if !damaged(file)? {
                continue;
            }
            // Another process may have noticed as well, removed it, and brought a good one: that stays.
            let _lock = Lock::wait(&self.blob_lock_path(&blob.digest), Mode::Exclusive, || {})?;
            if let Some(file) = self.blob(&blob.digest, blob.size)?
                && damaged(file)?
            {
                std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
            removed += 1;
        }
        Ok(removed)
    }

    fn commit_blob(&self, digest: &Digest, size: u64, file: &File, from: &Path) -> Result<(), StoreError> {
        let found = file.metadata().map_err(StoreError::io("inspect", from))?.len();
        if found != size {
            return Err(StoreError::Size { digest: *digest, expected: size, found });
        }
        file.set_permissions(Permissions::from_mode(0o444)).map_err(StoreError::io("change", from))?;
        file.sync_data().map_err(StoreError::io("write", from))?;
        let to = self.blob_path(digest);
        std::fs::rename(from, &to).map_err(StoreError::io("create", &to))?;
        sync_parent(&to)
    }
}

impl Part {
    /// What has arrived so far, for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies, for error messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it a blob; the caller has verified the digest. The result is open for reading from the start.
    pub fn commit(self) -> Result<File, StoreError> {
        self.store.commit_blob(&self.digest, self.size, &self.file, &self.path)?;
        // Not `self.file`: its offset is anywhere, and it can write.
        self.store.blob(&self.digest, self.size)?.ok_or(StoreError::Gone(self.digest))
    }

    /// Forgets what has arrived: it is not what was wanted.
    pub fn discard(self) -> Result<(), StoreError> {
        std::fs::remove_file(&self.path).map_err(StoreError::io("remove", &self.path))
    }
}
