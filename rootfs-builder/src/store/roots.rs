//! What keeps images: the references and the sandboxes, each of which names its image in `sandboxes/<id>/spec.json`. The snapshots
//! join them in [`Store::roots`] when they exist.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{RefRecord, Store, StoreError, record};
use crate::image::Digest;
use crate::reference::ImageName;

/// What the store needs to know of a sandbox.
#[derive(serde::Deserialize)]
struct SandboxRecord {
    image: Digest,
    #[serde(default)]
    name: String,
    /// Nobody can use it any more.
    #[serde(default)]
    removed: bool,
}

impl Store {
    /// An error if a sandbox has an image that is called nothing but one of `names`.
    pub(super) fn check_unused(&self, names: &[ImageName]) -> Result<(), StoreError> {
        let others = self.images_of_references(&names.iter().map(|name| self.ref_path(name)).collect())?;
        let mut used = self.sandboxes()?;
        used.retain(|(_, record)| !record.removed && !others.contains(&record.image));
        for name in names {
            let Some(reference) = self.reference(name).ok().flatten() else { continue };
            let users = used.iter().filter(|(_, record)| record.image == reference.image);
            let name_of = |(id, record): &(String, SandboxRecord)| {
                if record.name.is_empty() { id.clone() } else { record.name.clone() }
            };
            let sandboxes: Vec<String> = users.map(name_of).collect();
            if !sandboxes.is_empty() {
                return Err(StoreError::InUse { name: name.to_string(), sandboxes });
            }
        }
        Ok(())
    }

    /// The images that must stay.
    pub(super) fn roots(&self) -> Result<BTreeSet<Digest>, StoreError> {
        self.roots_without(&BTreeSet::new())
    }

    /// The same, without the references at these paths.
    pub(super) fn roots_without(&self, without: &BTreeSet<PathBuf>) -> Result<BTreeSet<Digest>, StoreError> {
        let mut roots = self.images_of_references(without)?;
        // What sandboxes have for a root file system, also those that do not run.
        roots.extend(self.sandboxes()?.into_iter().map(|(_, record)| record.image));
        Ok(roots)
    }

    /// What references mean, but for those at the paths `without`.
    fn images_of_references(&self, without: &BTreeSet<PathBuf>) -> Result<BTreeSet<Digest>, StoreError> {
        let mut images = BTreeSet::new();
        for key in self.digests_in("refs", ".json")? {
            let path = self.root.join("refs").join(format!("{}.json", key.hex()));
            if without.contains(&path) {
                continue;
            }
            // A damaged reference reaches nothing. It stays: without it a local name would mean a registry's image.
            match record::read::<RefRecord>(&path, &key) {
                Ok(reference) => images.extend(reference.map(|reference| reference.image)),
                Err(StoreError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(images)
    }

    /// The sandboxes that there are, by id.
    fn sandboxes(&self) -> Result<Vec<(String, SandboxRecord)>, StoreError> {
        let sandboxes = self.root.join("sandboxes");
        let entries = match std::fs::read_dir(&sandboxes) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StoreError::io("list", &sandboxes)(e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &sandboxes))?;
            // Without a whole record the sandbox has not come into being, or is on its way out.
            let record = std::fs::read(entry.path().join("spec.json")).ok();
            let record = record.and_then(|json| serde_json::from_slice::<SandboxRecord>(&json).ok());
            found.extend(record.map(|record| (entry.file_name().to_string_lossy().into_owned(), record)));
        }
        Ok(found)
    }
}
