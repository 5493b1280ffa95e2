//! Removal: by name, and of what nothing refers to.
//!
//! What a root (see `roots`) reaches is its image and the blobs of the image's manifest. The rest is garbage. Blobs that are reached
//! are a cache all the same (a layer is pulled again when it is needed), so a byte budget may cost them, the least
//! recently used first. Images that are reached are never removed.
//!
//! Everything happens under the exclusive store lock: nobody opens an image or writes a reference meanwhile. What another
//! process is making is locked by it and skipped.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::image::{digest_of_file, is_idle, last_used};
use super::lock::{Lock, Mode};
use super::record::sync_parent;
use super::{Store, StoreError, scratch};
use crate::image::{Digest, Manifest};
use crate::reference::ImageName;

/// How far [`Store::collect`] goes.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes on disk that the store may take; beyond it kept blobs go.
    pub bytes: u64,
    /// What was used within this time stays.
    pub grace: Duration,
}

/// What kind of thing was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Removed {
    /// A reference.
    Reference,
    /// A root file system.
    Image,
    /// A blob.
    Blob,
    /// What a process that was killed left behind.
    Leftover,
    /// Where a machine of the image had booted, for others to go on from. Not the store's to collect.
    Warm,
}

/// One thing that was removed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// What it was.
    pub kind: Removed,
    /// Its name, digest or file name.
    pub name: String,
    /// Bytes on disk that are free now.
    pub freed_bytes: u64,
}

/// What [`Store::collect`] leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Bytes on disk that are free now.
    pub freed_bytes: u64,
    /// Bytes on disk of what would have gone, had it not been used within the grace time.
    pub kept_by_grace_bytes: u64,
    /// Bytes on disk that images, blobs and what is on its way to become one still take.
    pub remaining_bytes: u64,
    /// By how much that is over the budget.
    pub over_budget_bytes: u64,
}

impl Store {
    /// Removes references, then the images that only they reached and the blobs that only those images needed. Nothing is removed
    /// if a sandbox would be left with an image that has no name. An image that another process is using right now is left to
    /// [`Store::collect`].
    pub fn remove(&self, names: &[ImageName], removed: &mut dyn FnMut(Removal)) -> Result<(), StoreError> {
        let _lock = self.lock_store(Mode::Exclusive)?;
        for name in names {
            if !self.has_reference(name) {
                return Err(StoreError::NotFound(name.to_string()));
            }
        }
        self.check_unused(names)?;
        let mut images = BTreeSet::new();
        for name in names {
            // A damaged reference is removed like any other; what it meant is for gc to find.
            images.extend(self.reference(name).ok().flatten().map(|reference| reference.image));
            let path = self.ref_path(name);
            if let Some(freed_bytes) = unlink(&path)? {
                removed(Removal { kind: Removed::Reference, name: name.to_string(), freed_bytes });
            }
            sync_parent(&path)?;
        }
        let roots = self.roots()?;
        let kept = self.reached_blobs(&roots);
        for image in images.difference(&roots) {
            let manifest = self.image_record(image).ok().flatten().map(|record| record.manifest);
            if !self.remove_image(image, removed)? {
                continue;
            }
            for blob in manifest.iter().flat_map(blobs_of).filter(|blob| !kept.contains(blob)) {
                self.remove_blob(&blob, removed)?;
            }
        }
        Ok(())
    }

    /// Removes what no reference reaches, what killed processes left, and kept blobs beyond the budget.
    pub fn collect(&self, budget: Budget, removed: &mut dyn FnMut(Removal)) -> Result<Report, StoreError> {
        let _lock = self.lock_store(Mode::Exclusive)?;
        let mut report = Report::default();
        let mut count = |removal: Removal| {
            report.freed_bytes += removal.freed_bytes;
            removed(removal);
        };
        let roots = self.roots()?;
        let kept = self.reached_blobs(&roots);
        let mut young = self.sweep_images(&roots, budget.grace, &mut count)?;
        for blob in self.digests_in("blobs/sha256", "")? {
            if kept.contains(&blob) {
                continue;
            }
            if is_idle(&self.blob_path(&blob), budget.grace) {
                self.remove_blob(&blob, &mut count)?;
            } else {
                young += allocated(&self.blob_path(&blob));
            }
        }
        self.sweep_abandoned(&mut count)?;
        young += self.sweep_ingest(budget.grace, &mut count)?;
        report.kept_by_grace_bytes = young;
        report.remaining_bytes = self.trim_cache(budget, &mut count)?;
        report.over_budget_bytes = report.remaining_bytes.saturating_sub(budget.bytes);
        self.sweep_locks();
        Ok(report)
    }

    /// What [`Store::collect`] would remove, were `names` removed before; nothing is. What others use at this moment counts as
    /// well.
    pub fn collectable(
        &self,
        budget: Budget,
        names: &[ImageName],
        removed: &mut dyn FnMut(Removal),
    ) -> Result<(), StoreError> {
        let _lock = self.lock_store(Mode::Shared)?;
        let mut without = BTreeSet::new();
        for name in names {
            let path = self.ref_path(name);
            removed(Removal {
                kind: Removed::Reference,
                name: name.to_string(),
                freed_bytes: allocated(&path),
            });
            without.insert(path);
        }
        let roots = self.roots_without(&without)?;
        let mut images: BTreeSet<Digest> = self.digests_in("images", ".ext4")?.into_iter().collect();
        images.extend(self.digests_in("images", ".json")?);
        let mut total = 0;
        for image in &images {
            let paths = [self.image_path(image), self.image_record_path(image)];
            let freed_bytes = paths.iter().map(|path| allocated(path)).sum();
            let idle = paths.iter().all(|path| !path.exists() || is_idle(path, budget.grace));
            if idle && !roots.contains(image) {
                removed(Removal { kind: Removed::Image, name: image.to_string(), freed_bytes });
            } else {
                total += allocated(&self.image_path(image));
            }
        }
        let kept = self.reached_blobs(&roots);
        let mut blobs = Vec::new();
        for blob in self.digests_in("blobs/sha256", "")? {
            let path = self.blob_path(&blob);
            total += allocated(&path);
            if is_idle(&path, budget.grace) {
                // Those that no image needs go first, whatever the budget is.
                blobs.push((kept.contains(&blob), last_used(&path), blob, allocated(&path)));
            }
        }
        blobs.sort_unstable();
        for (needed, _, blob, freed_bytes) in blobs {
            if !needed || total > budget.bytes {
                total -= freed_bytes;
                removed(Removal { kind: Removed::Blob, name: blob.to_string(), freed_bytes });
            }
        }
        for (path, name) in self.ingested()?.into_iter().filter(|(path, _)| is_idle(path, budget.grace)) {
            let freed_bytes = allocated(&path) + allocated_in(&path);
            removed(Removal { kind: Removed::Leftover, name, freed_bytes });
        }
        Ok(())
    }

    fn reached_blobs(&self, images: &BTreeSet<Digest>) -> BTreeSet<Digest> {
        let manifests = images.iter().filter_map(|image| self.image_record(image).ok().flatten());
        manifests.flat_map(|record| blobs_of(&record.manifest)).collect()
    }

    /// Returns the bytes of what is too young to go.
    fn sweep_images(
        &self,
        roots: &BTreeSet<Digest>,
        grace: Duration,
        removed: &mut dyn FnMut(Removal),
    ) -> Result<u64, StoreError> {
        let mut young = 0;
        let mut images: BTreeSet<Digest> = self.digests_in("images", ".ext4")?.into_iter().collect();
        images.extend(self.digests_in("images", ".json")?);
        for image in images.difference(roots) {
            let paths = [self.image_path(image), self.image_record_path(image)];
            if paths.iter().all(|path| !path.exists() || is_idle(path, grace)) {
                self.remove_image(image, removed)?;
            } else {
                young += paths.iter().map(|path| allocated(path)).sum::<u64>();
            }
        }
        Ok(young)
    }

    /// What is in `ingest`, has lost its owner and cannot be continued: copies of archives, file systems half written.
    /// However young: the owner's lock tells. The caller holds the store lock exclusively.
    pub(super) fn sweep_abandoned(&self, removed: &mut dyn FnMut(Removal)) -> Result<(), StoreError> {
        for (path, name) in self.ingested()? {
            let freed = if let Some(image) = digest_of_file(&name, ".ext4.part") {
                unlink_unowned(&path, &self.image_lock_path(&image))?
            } else if name.starts_with("stream-") && scratch::is_abandoned(&path) {
                let freed = allocated_in(&path);
                std::fs::remove_dir_all(&path).map_err(StoreError::io("remove", &path))?;
                Some(freed)
            } else {
                None
            };
            if let Some(freed_bytes) = freed {
                removed(Removal { kind: Removed::Leftover, name, freed_bytes });
            }
        }
        Ok(())
    }

    /// What else is in `ingest` and has no living owner. Returns the bytes of downloads too young to go.
    fn sweep_ingest(&self, grace: Duration, removed: &mut dyn FnMut(Removal)) -> Result<u64, StoreError> {
        let mut young = 0;
        for (path, name) in self.ingested()? {
            if !is_idle(&path, grace) {
                young += digest_of_file(&name, ".part").map_or(0, |_| allocated(&path));
                continue;
            }
            let freed = if let Some(blob) = digest_of_file(&name, ".part") {
                unlink_unowned(&path, &self.blob_lock_path(&blob))?
            } else if name.starts_with("record-") {
                // Records are written under the store lock, which we hold.
                unlink(&path)?
            } else {
                None
            };
            if let Some(freed_bytes) = freed {
                removed(Removal { kind: Removed::Leftover, name, freed_bytes });
            }
        }
        Ok(young)
    }

    /// What is in `ingest`.
    fn ingested(&self) -> Result<Vec<(PathBuf, String)>, StoreError> {
        let ingest = self.ingest_dir();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&ingest).map_err(StoreError::io("list", &ingest))? {
            let entry = entry.map_err(StoreError::io("list", &ingest))?;
            found.extend(entry.file_name().into_string().ok().map(|name| (entry.path(), name)));
        }
        Ok(found)
    }

    /// Removes blobs, the least recently used first, until the budget is kept. Returns what remains.
    fn trim_cache(&self, budget: Budget, removed: &mut dyn FnMut(Removal)) -> Result<u64, StoreError> {
        let images = self.digests_in("images", ".ext4")?;
        let mut total: u64 = images.iter().map(|image| allocated(&self.image_path(image))).sum();
        total += self.ingested()?.iter().map(|(path, _)| allocated(path) + allocated_in(path)).sum::<u64>();
        let mut blobs: Vec<(SystemTime, Digest, u64)> = Vec::new();
        for blob in self.digests_in("blobs/sha256", "")? {
            let path = self.blob_path(&blob);
            let size = allocated(&path);
            total += size;
            if let Some(used) = last_used(&path).filter(|_| is_idle(&path, budget.grace)) {
                blobs.push((used, blob, size));
            }
        }
        blobs.sort_unstable();
        for (_, blob, size) in blobs {
            if total <= budget.bytes {
                break;
            }
            if self.remove_blob(&blob, removed)? {
                total -= size;
            }
        }
        Ok(total)
    }

    /// The record goes first: without it the file does not count.
    fn remove_image(&self, image: &Digest, removed: &mut dyn FnMut(Removal)) -> Result<bool, StoreError> {
        let Some(_lock) = Lock::attempt(&self.image_lock_path(image), Mode::Exclusive)? else {
            return Ok(false);
        };
        let record = self.image_record_path(image);
        let mut freed_bytes = unlink(&record)?.unwrap_or(0);
        sync_parent(&record)?;
        freed_bytes += unlink(&self.image_path(image))?.unwrap_or(0);
        removed(Removal { kind: Removed::Image, name: image.to_string(), freed_bytes });
        Ok(true)
    }

    fn remove_blob(&self, blob: &Digest, removed: &mut dyn FnMut(Removal)) -> Result<bool, StoreError> {
        let Some(_lock) = Lock::attempt(&self.blob_lock_path(blob), Mode::Exclusive)? else {
            return Ok(false);
        };
        let Some(freed_bytes) = unlink(&self.blob_path(blob))? else { return Ok(false) };
        removed(Removal { kind: Removed::Blob, name: blob.to_string(), freed_bytes });
        Ok(true)
    }

    /// Lock files that nobody holds. Not the store's own: we hold it.
    fn sweep_locks(&self) {
        let Ok(entries) = std::fs::read_dir(self.root.join("locks")) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.ends_with("store") {
                continue;
            }
            if let Ok(Some(lock)) = Lock::attempt(&path, Mode::Exclusive) {
                lock.remove(&path);
            }
        }
    }
}

/// Everything that an image may have left among the blobs: archives bring manifest and configuration as blobs, too.
fn blobs_of(manifest: &Manifest) -> Vec<Digest> {
    let own = [manifest.digest, manifest.config.digest];
    own.into_iter().chain(manifest.layers.iter().map(|layer| layer.digest)).collect()
}

/// Removes a file; returns the bytes it took, `None` when there was none.
fn unlink(path: &Path) -> Result<Option<u64>, StoreError> {
    let freed = allocated(path);
    match std::fs::remove_file(path) {
        Ok(()) => Ok(Some(freed)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("remove", path)(e)),
    }
}

/// As [`unlink`], unless somebody holds the lock.
fn unlink_unowned(path: &Path, lock: &Path) -> Result<Option<u64>, StoreError> {
    match Lock::attempt(lock, Mode::Exclusive)? {
        Some(_lock) => unlink(path),
        None => Ok(None),
    }
}

pub(super) fn allocated(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512)
}

pub(super) fn allocated_in(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|entry| allocated(&entry.path())).sum()
}
