//! What keeps images: the references, the sandboxes and the snapshots. A sandbox names its image in `sandboxes/<id>/spec.json`, a
//! snapshot in `snapshots/<name>/snapshot.json`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{RefRecord, Store, StoreError, record};
use crate::image::Digest;
use crate::reference::ImageName;

/// Where those are that have images, what their records are called, and what they are.
const USERS: [(&str, &str, &str); 2] =
    [("sandboxes", "spec.json", "sandbox"), ("snapshots", "snapshot.json", "snapshot")];

/// What the store needs to know of a sandbox or a snapshot.
#[derive(serde::Deserialize)]
struct UserRecord {
    image: Digest,
    #[serde(default)]
    name: String,
    /// Nobody can use it any more.
    #[serde(default)]
    removed: bool,
}

impl Store {
    /// An error if a sandbox or a snapshot has an image that is called nothing but one of `names`.
    pub(super) fn check_unused(&self, names: &[ImageName]) -> Result<(), StoreError> {
        let others = self.images_of_references(&names.iter().map(|name| self.ref_path(name)).collect())?;
        let mut used = self.users()?;
        used.retain(|(_, record)| !record.removed && !others.contains(&record.image));
        for name in names {
            let Some(reference) = self.reference(name).ok().flatten() else { continue };
            let users = used.iter().filter(|(_, record)| record.image == reference.image);
            let users: Vec<String> = users.map(|(user, _)| user.clone()).collect();
            if !users.is_empty() {
                return Err(StoreError::InUse { name: name.to_string(), users });
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
        roots.extend(self.users()?.into_iter().map(|(_, record)| record.image));
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

    /// The sandboxes and snapshots that there are, each as people are told of it.
    fn users(&self) -> Result<Vec<(String, UserRecord)>, StoreError> {
        let mut found = Vec::new();
        for (dir, file, kind) in USERS {
            let dir = self.root.join(dir);
            let entries = match std::fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(StoreError::io("list", &dir)(e)),
            };
            for entry in entries {
                let entry = entry.map_err(StoreError::io("list", &dir))?;
                // Without a whole record it has not come into being, or is on its way out.
                let record = std::fs::read(entry.path().join(file)).ok();
                let record = record.and_then(|json| serde_json::from_slice::<UserRecord>(&json).ok());
                found.extend(record.map(|record| {
                    let directory = entry.file_name();
                    let directory = directory.to_string_lossy();
                    let name = if record.name.is_empty() { &*directory } else { &record.name };
                    (format!("the {kind} {name}"), record)
                }));
            }
        }
        Ok(found)
    }
}
