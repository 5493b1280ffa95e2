//! Images and the references to them: look up, make, name.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::lock::{Lock, Mode};
use super::record::{self, sync_parent};
use super::{ImageRecord, Recipe, RefRecord, Store, StoreError, create_new, now, touch};
use crate::image::Digest;
use crate::reference::ImageName;

/// An image that is whole, and open.
#[derive(Debug)]
pub struct Image {
    /// The name it was found under.
    pub reference: RefRecord,
    /// What is known of it.
    pub record: ImageRecord,
    /// The root file system, open for reading: usable even after the image is removed.
    pub rootfs: File,
    /// Its absolute path.
    pub path: PathBuf,
    /// Bytes that it takes on disk; the rest of `record.size_bytes` are holes.
    pub allocated_bytes: u64,
    /// When it was last opened or pulled.
    pub used_at: SystemTime,
}

/// All references there are.
#[derive(Debug, Default)]
pub struct Listing {
    /// The whole images, by name.
    pub images: Vec<Image>,
    /// What could not be read, or has lost its image.
    pub damaged: Vec<StoreError>,
}

/// The right to make an image, and to name it: this process holds the image's lock. What is not committed goes with it.
#[derive(Debug)]
pub struct Pending {
    store: Store,
    derivation: Digest,
    _lock: Lock,
}

impl Store {
    /// Is there a reference of this name, whatever state its image is in? A damaged one counts: it must not make the
    /// name mean something else.
    pub fn has_reference(&self, name: &ImageName) -> bool {
        self.ref_path(name).exists()
    }

    /// What `name` refers to; `None` when there is no such reference.
    pub fn reference(&self, name: &ImageName) -> Result<Option<RefRecord>, StoreError> {
        record::read(&self.ref_path(name), &name.digest())
    }

    /// The record of an image, whether or not its file is there.
    pub fn image_record(&self, derivation: &Digest) -> Result<Option<ImageRecord>, StoreError> {
        record::read(&self.image_record_path(derivation), derivation)
    }

    /// Opens the image that `name` refers to, and counts as a use of it.
    pub fn image(&self, name: &ImageName) -> Result<Image, StoreError> {
        let image = self.find(name)?;
        if let Ok(record) = File::open(self.image_record_path(&image.reference.image)) {
            touch(&record);
        }
        Ok(image)
    }

    /// Opens what a reference refers to, whatever its name means by now.
    pub fn image_of(&self, reference: RefRecord) -> Result<Image, StoreError> {
        let _lock = self.lock_store(Mode::Shared)?;
        self.open_image(reference)
    }

    /// As [`Store::image`], but does not count as a use.
    pub fn find(&self, name: &ImageName) -> Result<Image, StoreError> {
        let _lock = self.lock_store(Mode::Shared)?;
        let reference = self.reference(name)?.ok_or_else(|| StoreError::NotFound(name.to_string()))?;
        self.open_image(reference)
    }

    /// Opens the root file system of an image that a sandbox refers to, whatever its name means by now.
    pub fn rootfs(&self, derivation: &Digest) -> Result<File, StoreError> {
        let _lock = self.lock_store(Mode::Shared)?;
        let record = self.image_record(derivation)?.ok_or(StoreError::Gone(*derivation))?;
        let opened = self.open_rootfs(derivation, &record)?;
        opened.map(|(_, rootfs)| rootfs).ok_or(StoreError::Gone(*derivation))
    }

    /// Every reference, by name.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let _lock = self.lock_store(Mode::Shared)?;
        let mut listing = Listing::default();
        for key in self.digests_in("refs", ".json")? {
            let path = self.root.join("refs").join(format!("{}.json", key.hex()));
            match record::read::<RefRecord>(&path, &key) {
                Ok(Some(reference)) => match self.open_image(reference) {
                    Ok(image) => listing.images.push(image),
                    Err(error) => listing.damaged.push(error),
                },
                Ok(None) => {}
                Err(error) => listing.damaged.push(error),
            }
        }
        listing.images.sort_by_key(|image| image.reference.name.to_string());
        Ok(listing)
    }

    /// Waits until no other process makes this image, and calls `waiting` before it does. Blocks.
    pub fn begin(&self, derivation: Digest, waiting: impl FnOnce()) -> Result<Pending, StoreError> {
        let lock = Lock::wait(&self.image_lock_path(&derivation), Mode::Exclusive, waiting)?;
        Ok(Pending { store: self.clone(), derivation, _lock: lock })
    }

    fn open_image(&self, reference: RefRecord) -> Result<Image, StoreError> {
        let incomplete = || StoreError::Incomplete { name: reference.name.to_string() };
        let record = self.image_record(&reference.image)?.ok_or_else(incomplete)?;
        let (path, rootfs) = self.open_rootfs(&reference.image, &record)?.ok_or_else(incomplete)?;
        let metadata = rootfs.metadata().map_err(StoreError::io("inspect", &path))?;
        let used_at = std::fs::metadata(self.image_record_path(&reference.image))
            .and_then(|record| record.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Image { reference, record, rootfs, path, allocated_bytes: metadata.blocks() * 512, used_at })
    }

    /// The image's file, if it is there in full length.
    fn open_rootfs(
        &self,
        derivation: &Digest,
        record: &ImageRecord,
    ) -> Result<Option<(PathBuf, File)>, StoreError> {
        let path = self.image_path(derivation);
        match File::open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(StoreError::io("inspect", &path))?;
                Ok((found.is_file() && found.len() == record.size_bytes).then_some((path, file)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("open", &path)(e)),
        }
    }

    /// The digests that name files in a directory of the store; files of other names are not ours.
    pub(super) fn digests_in(&self, dir: &str, suffix: &str) -> Result<Vec<Digest>, StoreError> {
        let dir = self.root.join(dir);
        let mut digests = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let name = entry.map_err(StoreError::io("list", &dir))?.file_name();
            let digest = name.to_str().and_then(|name| digest_of_file(name, suffix));
            digests.extend(digest);
        }
        Ok(digests)
    }
}

/// The digest in `<hex><suffix>`.
pub(super) fn digest_of_file(name: &str, suffix: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_suffix(suffix)?).parse().ok()
}

impl Pending {
    /// The image's record if it is whole already: nothing is left to do but to name it. A damaged record counts as absent.
    pub fn present(&self) -> Result<Option<ImageRecord>, StoreError> {
        let record = match self.store.image_record(&self.derivation) {
            Ok(Some(record)) => record,
            Ok(None) | Err(StoreError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let whole = self.store.open_rootfs(&self.derivation, &record)?.is_some();
        Ok(whole.then_some(record))
    }

    /// An empty file to write the file system into.
    pub fn create(&self) -> Result<File, StoreError> {
        let path = self.store.image_part_path(&self.derivation);
        // What a killed process left is of no use: a new inode, so that a stale open file cannot write into ours.
        let _ = std::fs::remove_file(&path);
        create_new(&path)
    }

    /// Bytes on disk of what has been written so far.
    pub(crate) fn written(&self) -> u64 {
        super::gc::allocated(&self.store.image_part_path(&self.derivation))
    }

    /// Makes the file from [`Pending::create`] an image.
    pub fn commit(
        &self,
        file: &File,
        recipe: Recipe,
        image: ImageRecordParts,
    ) -> Result<ImageRecord, StoreError> {
        let from = self.store.image_part_path(&self.derivation);
        let metadata = file.metadata().map_err(StoreError::io("inspect", &from))?;
        let record = ImageRecord {
            recipe,
            manifest: image.manifest,
            config: image.config,
            size_bytes: metadata.len(),
            inodes: image.inodes,
            created_at: now(),
        };
        file.set_permissions(Permissions::from_mode(0o444)).map_err(StoreError::io("change", &from))?;
        file.sync_data().map_err(StoreError::io("write", &from))?;
        let _lock = self.store.lock_store(Mode::Shared)?;
        let to = self.store.image_path(&self.derivation);
        std::fs::rename(&from, &to).map_err(StoreError::io("create", &to))?;
        sync_parent(&to)?;
        record::write(&self.store.ingest_dir(), &self.store.image_record_path(&self.derivation), &record)?;
        Ok(record)
    }

    /// Lets `name` mean this image: the last step.
    pub fn name(&self, name: &ImageName) -> Result<RefRecord, StoreError> {
        let _lock = self.store.lock_store(Mode::Shared)?;
        // gc skips an image whose lock is held, but it may have come before we took it.
        if self.present()?.is_none() {
            return Err(StoreError::Gone(self.derivation));
        }
        if let Ok(record) = File::open(self.store.image_record_path(&self.derivation)) {
            touch(&record);
        }
        let reference = RefRecord { name: name.clone(), image: self.derivation, pulled_at: now() };
        record::write(&self.store.ingest_dir(), &self.store.ref_path(name), &reference)?;
        Ok(reference)
    }
}

impl Drop for Pending {
    /// Removes what has been written and did not become an image: a conversion cannot be continued.
    fn drop(&mut self) {
        // The lock is still held. What stays all the same is overwritten by the next try, or swept.
        let _ = std::fs::remove_file(self.store.image_part_path(&self.derivation));
    }
}

/// What the converter and the source contribute to an [`ImageRecord`].
#[derive(Clone, Debug)]
pub struct ImageRecordParts {
    /// The manifest.
    pub manifest: crate::image::Manifest,
    /// The configuration.
    pub config: crate::image::ImageConfig,
    /// Inodes in use in the file system.
    pub inodes: u64,
}

/// Is `path` older than `grace`? A file that cannot be inspected is not.
pub(super) fn is_idle(path: &Path, grace: std::time::Duration) -> bool {
    last_used(path).is_some_and(|used| used.elapsed().is_ok_and(|age| age >= grace))
}

pub(super) fn last_used(path: &Path) -> Option<SystemTime> {
    std::fs::symlink_metadata(path).and_then(|found| found.modified()).ok()
}
