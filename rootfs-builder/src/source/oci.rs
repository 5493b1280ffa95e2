//! The rules of an OCI image layout, in a directory or in an archive (OCI image specification, image-layout.md).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use oci_spec::image::ImageIndex;

use super::archive::Archive;
use super::{Input, SourceError, layout};
use crate::image::{Descriptor, Digest, Document, MAX_INDEX_DEPTH, Manifest, Platform};
use crate::progress::Progress;
use crate::store::Store;

const TAG: &str = "org.opencontainers.image.ref.name";

/// An image that was found in a local source.
#[derive(Debug)]
pub(crate) struct LocalImage {
    /// Its manifest.
    pub(crate) manifest: Manifest,
    /// The configuration's bytes, verified.
    pub(crate) config: Vec<u8>,
    pub(super) blobs: Blobs,
}

/// Where the layers are.
#[derive(Debug)]
pub(super) enum Blobs {
    Layout(PathBuf),
    /// With the names of the layers where they are not their digests.
    Archive(Archive, Vec<(Digest, String)>),
}

impl LocalImage {
    /// Bytes on disk of the copy that was made of it: of an archive.
    pub(crate) fn copied_bytes(&self) -> Option<u64> {
        match &self.blobs {
            Blobs::Layout(_) => None,
            Blobs::Archive(archive, _) => Some(archive.copied_bytes()),
        }
    }

    /// Opens a layer where it is, unverified, if it can be read while it is copied. What is in an archive need not be: it
    /// is moved.
    pub(crate) fn open_in_place(&self, layer: &Descriptor) -> Result<Option<File>, SourceError> {
        match &self.blobs {
            Blobs::Layout(dir) => layout::open_layer(dir, layer).map(Some),
            Blobs::Archive(..) => Ok(None),
        }
    }

    /// Brings a layer into the store: verified, and open from its start. Blocks.
    pub(crate) fn layer(
        &self,
        store: &Store,
        layer: &Descriptor,
        progress: Progress<'_>,
    ) -> Result<File, SourceError> {
        match &self.blobs {
            Blobs::Layout(dir) => layout::copy(dir, store, layer, progress),
            Blobs::Archive(archive, paths) => {
                let given = paths.iter().find(|(digest, _)| *digest == layer.digest);
                let path = given.map_or_else(|| blob_name(&layer.digest), |(_, path)| path.clone());
                archive.take(store, &path, layer)
            }
        }
    }
}

/// Opens the layout in an archive.
pub(super) fn open_archive(
    archive: Archive,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<LocalImage, SourceError> {
    let index = archive.document("index.json")?;
    let read = |blob: &Descriptor| {
        let name = blob_name(&blob.digest);
        verified(archive.input(), blob, archive.document(&name)?)
    };
    let (manifest, config) = resolve(archive.input(), &index, tag, platform, read)?;
    Ok(LocalImage { manifest, config, blobs: Blobs::Archive(archive, Vec::new()) })
}

/// Finds the image in a layout: by tag in its index.json, then by platform, through nested indexes.
pub(super) fn resolve(
    input: &Input,
    index: &[u8],
    tag: Option<&str>,
    platform: &Platform,
    read: impl Fn(&Descriptor) -> Result<Vec<u8>, SourceError>,
) -> Result<(Manifest, Vec<u8>), SourceError> {
    let malformed =
        |source| SourceError::Malformed { input: input.clone(), name: "index.json".into(), source };
    let mut index: ImageIndex = serde_json::from_slice(index).map_err(malformed)?;
    let tagged = by_tag(input, index.manifests(), tag)?;
    index.set_manifests(tagged);
    let mut bytes = serde_json::to_vec(&index).map_err(malformed)?;
    let mut digest = Digest::of(&bytes);
    let unusable = |source| SourceError::Manifest { input: input.clone(), source };
    // index.json itself, the indexes within, the manifest.
    for _ in 0..MAX_INDEX_DEPTH + 2 {
        match Document::parse(digest, &bytes, platform).map_err(unusable)? {
            Document::Manifest(manifest) => {
                let config = read(&manifest.config)?;
                return Ok((manifest, config));
            }
            Document::Index(entry) => {
                bytes = read(&entry)?;
                digest = entry.digest;
            }
        }
    }
    Err(SourceError::TooDeep { input: input.clone() })
}

/// The entries with the tag; without one all of them, if they are one image (for several platforms, or with several
/// tags, perhaps).
fn by_tag(
    input: &Input,
    entries: &[oci_spec::image::Descriptor],
    wanted: Option<&str>,
) -> Result<Vec<oci_spec::image::Descriptor>, SourceError> {
    let tag_of = |entry: &oci_spec::image::Descriptor| {
        entry.annotations().as_ref().and_then(|annotations| annotations.get(TAG)).cloned()
    };
    let chosen: Vec<_> =
        entries.iter().filter(|entry| wanted.is_none() || tag_of(entry).as_deref() == wanted).collect();
    let tags: BTreeSet<_> = chosen.iter().map(|entry| tag_of(entry)).collect();
    // Two entries of which neither names a platform are two images, unless they are the same one.
    let plain: BTreeSet<_> = chosen
        .iter()
        .filter(|entry| entry.platform().is_none())
        .map(|entry| entry.digest().to_string())
        .collect();
    let digests: BTreeSet<_> = chosen.iter().map(|entry| entry.digest().to_string()).collect();
    if chosen.is_empty() || (tags.len() > 1 && digests.len() > 1) || plain.len() > 1 {
        let offered: BTreeSet<String> = entries.iter().filter_map(tag_of).collect();
        return Err(SourceError::Tag {
            input: input.clone(),
            wanted: wanted.map(str::to_owned),
            offered: offered.into_iter().collect(),
        });
    }
    Ok(chosen.into_iter().cloned().collect())
}

/// Where a layout has a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// `bytes`, if they are what the descriptor names.
pub(super) fn verified(input: &Input, blob: &Descriptor, bytes: Vec<u8>) -> Result<Vec<u8>, SourceError> {
    let (found, length) = (Digest::of(&bytes), bytes.len() as u64);
    if length != blob.size {
        return Err(SourceError::WrongSize {
            input: input.clone(),
            digest: blob.digest,
            expected: blob.size,
            found: length,
        });
    }
    if found != blob.digest {
        return Err(SourceError::WrongDigest { input: input.clone(), expected: blob.digest, found });
    }
    Ok(bytes)
}
