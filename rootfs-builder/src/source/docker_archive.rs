//! What `docker save` writes: manifest.json, a configuration an image, and layers that may be links to each other.

use serde::{Deserialize, Serialize};

use super::SourceError;
use super::archive::Archive;
use super::oci::{Blobs, LocalImage};
use crate::image::{Descriptor, Digest, MAX_LAYERS, Manifest, ManifestError};
use crate::layer::Compression;

/// An entry of manifest.json (moby, image/tarexport).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Saved {
    fn tags(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().flatten()
    }
}

/// The OCI manifest that such an image would have. The order of the fields is part of its digest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Synthesised<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: &'a Descriptor,
    layers: &'a [Descriptor],
}

/// Finds the image in the archive.
pub(super) fn open(archive: Archive, tag: Option<&str>) -> Result<LocalImage, SourceError> {
    let name = "manifest.json";
    let saved: Vec<Saved> = serde_json::from_slice(&archive.document(name)?).map_err(|source| {
        SourceError::Malformed { input: archive.input().clone(), name: name.into(), source }
    })?;
    let saved = choose(&archive, &saved, tag)?;
    let config = archive.document(&saved.config)?;
    let mut layers = Vec::new();
    let mut names = Vec::new();
    for name in saved.layers.iter().take(MAX_LAYERS + 1) {
        let stored = archive.find(name)?;
        let compression = match Compression::of(&archive.start(stored)?) {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        layers.push(Descriptor {
            digest: stored.digest,
            size: stored.size,
            media_type: format!("application/vnd.oci.image.layer.v1.tar{compression}"),
        });
        names.push((stored.digest, name.clone()));
    }
    let config_descriptor = Descriptor {
        digest: Digest::of(&config),
        size: config.len() as u64,
        media_type: "application/vnd.oci.image.config.v1+json".into(),
    };
    let manifest = synthesise(config_descriptor, layers, name, &archive)?;
    if manifest.layers.len() > MAX_LAYERS {
        let (digest, count) = (manifest.digest, saved.layers.len());
        let source = ManifestError::TooManyLayers { digest, count };
        return Err(SourceError::Manifest { input: archive.input().clone(), source });
    }
    Ok(LocalImage { manifest, config, blobs: Blobs::Archive(archive, names) })
}

fn synthesise(
    config: Descriptor,
    layers: Vec<Descriptor>,
    name: &str,
    archive: &Archive,
) -> Result<Manifest, SourceError> {
    let document = Synthesised {
        schema_version: 2,
        media_type: "application/vnd.oci.image.manifest.v1+json",
        config: &config,
        layers: &layers,
    };
    let bytes = serde_json::to_vec(&document).map_err(|source| SourceError::Malformed {
        input: archive.input().clone(),
        name: name.to_owned(),
        source,
    })?;
    Ok(Manifest { digest: Digest::of(&bytes), config, layers })
}

/// The image with the tag: `name:tag` as in RepoTags, or only its tag.
fn choose<'a>(archive: &Archive, saved: &'a [Saved], wanted: Option<&str>) -> Result<&'a Saved, SourceError> {
    let matches = |tag: &String, wanted: &str| {
        tag == wanted || tag.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
    };
    let chosen: Vec<&Saved> = saved
        .iter()
        .filter(|image| wanted.is_none_or(|wanted| image.tags().any(|tag| matches(tag, wanted))))
        .collect();
    match chosen[..] {
        [image] => Ok(image),
        _ => Err(SourceError::Tag {
            input: archive.input().clone(),
            wanted: wanted.map(str::to_owned),
            offered: saved.iter().flat_map(Saved::tags).cloned().collect(),
        }),
    }
}
