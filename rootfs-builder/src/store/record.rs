//! The store's JSON: what it says of an image and of a reference. What is read back is checked; no path comes from it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::image::{Digest, ImageConfig, Manifest};
use crate::reference::ImageName;

/// A manifest of [`crate::image::MAX_DOCUMENT`] bytes, written in our words, stays below.
const MAX_RECORD: u64 = 16 << 20;

/// Everything that determines an image file's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// The manifest's digest.
    pub manifest: Digest,
    /// The uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// As the image's configuration states it.
    pub platform: String,
    /// The file system's size in bytes where the user asked for one.
    pub size: Option<u64>,
    /// With a journal?
    pub journal: bool,
    /// [`crate::ext4::WRITER_VERSION`].
    pub writer: u32,
}

impl Recipe {
    /// The digest of the recipe: the image's name in the store. Its input is the recipe's JSON, whose fields have a
    /// fixed order and whose strings are quoted, so that two recipes never have the same text.
    pub fn derivation(&self) -> Digest {
        let mut text = b"voidrun image\n".to_vec();
        // Writing plain structs into memory cannot fail.
        let _ = serde_json::to_writer(&mut text, self);
        Digest::of(&text)
    }

    /// The file system's UUID, from the derivation: same input, same bytes. Version 8 of RFC 9562.
    pub fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.derivation().as_bytes()[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}

/// An image in the store: `images/<derivation>.json` beside `images/<derivation>.ext4`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// What it was made from.
    pub recipe: Recipe,
    /// The manifest, so that it can be converted again from the kept blobs.
    pub manifest: Manifest,
    /// How to run it.
    pub config: ImageConfig,
    /// The image file's length in bytes.
    pub size_bytes: u64,
    /// Inodes in use: files, directories and the rest.
    pub inodes: u64,
    /// Seconds since 1970.
    pub created_at: u64,
}

/// A reference in the store: `refs/<digest of the name's key>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefRecord {
    /// The name.
    pub name: ImageName,
    /// The derivation of the image it names.
    pub image: Digest,
    /// Seconds since 1970 of the last pull.
    pub pulled_at: u64,
}

/// A record that knows under which digest it has to lie.
pub(super) trait Record: Serialize + DeserializeOwned {
    fn key(&self) -> Digest;

    /// What is wrong inside, where the parts contradict each other.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Record for ImageRecord {
    fn key(&self) -> Digest {
        self.recipe.derivation()
    }

    fn check(&self) -> Result<(), String> {
        if self.manifest.digest != self.recipe.manifest {
            return Err("it speaks of two manifests".into());
        }
        if self.manifest.layers.len() != self.recipe.diff_ids.len() {
            return Err("its numbers of layers and diff_ids differ".into());
        }
        Ok(())
    }
}

impl Record for RefRecord {
    fn key(&self) -> Digest {
        self.name.digest()
    }
}

/// The record for `key` at `path`; `None` when there is no file.
pub(super) fn read<R: Record>(path: &Path, key: &Digest) -> Result<Option<R>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("open", path)(e)),
    };
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD + 1).read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
    if bytes.len() as u64 > MAX_RECORD {
        return Err(damaged(format!("longer than {MAX_RECORD} bytes")));
    }
    let record: R = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    record.check().map_err(&damaged)?;
    if record.key() != *key {
        return Err(damaged("it belongs under another name".into()));
    }
    Ok(Some(record))
}

/// Writes `record` to `path` by way of a temporary file in `ingest`: whole or not at all, power loss included.
/// The caller holds the store lock, shared at least, so that gc does not take the temporary file for a leftover.
pub(super) fn write<R: Serialize>(ingest: &Path, path: &Path, record: &R) -> Result<(), StoreError> {
    let failed = |action| StoreError::io(action, path);
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|e| failed("write")(e.into()))?;
    bytes.push(b'\n');
    let mut temporary = tempfile::Builder::new()
        .prefix("record-")
        .suffix(".tmp")
        .tempfile_in(ingest)
        .map_err(StoreError::io("create a file in", ingest))?;
    temporary.write_all(&bytes).map_err(failed("write"))?;
    temporary.as_file().sync_data().map_err(failed("write"))?;
    temporary.persist(path).map_err(|e| failed("write")(e.error))?;
    sync_parent(path)
}

/// Makes the entries of `path`'s directory durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            manifest: Digest::of(b"m"),
            diff_ids: vec![Digest::of(b"a"), Digest::of(b"b")],
            platform: "linux/amd64".into(),
            size: None,
            journal: true,
            writer: 1,
        }
    }

    #[test]
    fn every_part_of_the_recipe_changes_the_derivation() {
        let base = recipe();
        let changes: [fn(&mut Recipe); 7] = [
            |r| r.manifest = Digest::of(b"n"),
            |r| r.diff_ids.reverse(),
            |r| r.diff_ids.truncate(1),
            |r| r.platform.push('x'),
            |r| r.size = Some(0),
            |r| r.journal = false,
            |r| r.writer = 2,
        ];
        let mut seen = std::collections::BTreeSet::from([base.derivation()]);
        for change in changes {
            let mut other = base.clone();
            change(&mut other);
            assert!(seen.insert(other.derivation()), "{other:?}");
        }
    }

    /// The canonical form is part of the store's format: a change of this digest orphans every image there is.
    #[test]
    fn derivation_is_stable() {
        let uuid = recipe().uuid();
        assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
        assert_eq!(
            recipe().derivation().to_string(),
            "sha256:7e873f27ce15fa855358ef2ea3048a71aaab5b176da61b02a647ee527761c321"
        );
    }

    #[test]
    fn a_record_under_another_name_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let name = ImageName::from("tool".parse::<crate::reference::LocalName>().unwrap());
        let record = RefRecord { name, image: Digest::of(b""), pulled_at: 0 };
        write(dir.path(), &path, &record).unwrap();
        assert_eq!(read::<RefRecord>(&path, &record.key()).unwrap(), Some(record));
        assert!(matches!(read::<RefRecord>(&path, &Digest::of(b"other")), Err(StoreError::Damaged { .. })));
        assert!(matches!(read::<RefRecord>(&dir.path().join("y"), &Digest::of(b"")), Ok(None)));
    }

    #[test]
    fn torn_records_are_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let name = ImageName::from("tool".parse::<crate::reference::LocalName>().unwrap());
        let record = RefRecord { name, image: Digest::of(b""), pulled_at: 0 };
        let whole = serde_json::to_vec(&record).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read::<RefRecord>(&path, &record.key()), Err(StoreError::Damaged { .. })));
        }
    }
}
