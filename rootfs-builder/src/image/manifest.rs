//! Manifests and indexes, parsed once from bytes that nobody has vouched for.

use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde::{Deserialize, Serialize};

use super::{Digest, Platform, listed};

/// The largest manifest, index or configuration that is read, in bytes (the registries' own limit is 4 MiB).
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// The most layers of one image. Docker stops at 127.
pub const MAX_LAYERS: usize = 1000;

/// The deepest nesting of indexes that is followed.
pub const MAX_INDEX_DEPTH: usize = 4;

/// What a manifest says of a blob: nothing here is believed until the blob's bytes have been hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The blob's digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

/// An image's manifest: the configuration blob and the layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The digest of the manifest's own bytes: the image's identity.
    pub digest: Digest,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// A document that is not what its place asks for.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON of a manifest, index or configuration.
    #[error("{what} {digest} is malformed: {source}")]
    Malformed {
        /// "manifest", "index" or "configuration".
        what: &'static str,
        /// Of the document.
        digest: Digest,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Neither a manifest nor an index of a kind that can be converted.
    #[error("{digest} is a {media_type:?}, not an image: expected an OCI or docker manifest or index")]
    NotAnImage {
        /// Of the document.
        digest: Digest,
        /// What it says of itself.
        media_type: String,
    },
    /// The index has no image for the platform.
    #[error("no image for {wanted} in {digest}; it has: {}", listed(offered))]
    NoSuchPlatform {
        /// Of the index.
        digest: Digest,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: Vec<String>,
    },
    /// More layers than [`MAX_LAYERS`].
    #[error("manifest {digest} has {count} layers, more than {MAX_LAYERS}")]
    TooManyLayers {
        /// Of the manifest.
        digest: Digest,
        /// How many it has.
        count: usize,
    },
    /// The configuration lists another number of layers than the manifest.
    #[error("manifest {digest} has {layers} layers, its configuration has {diff_ids} diff_ids")]
    LayerCount {
        /// Of the manifest.
        digest: Digest,
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
}

/// What a document at the place of an image turned out to be.
#[derive(Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// An index, from which this entry serves the platform: a manifest, or an index again.
    Index(Descriptor),
}

impl Document {
    /// Parses the manifest or index `bytes`, whose digest the caller has verified; of an index, chooses the entry for `platform`.
    pub fn parse(digest: Digest, bytes: &[u8], platform: &Platform) -> Result<Self, ManifestError> {
        let malformed = |what, source: Box<dyn std::error::Error + Send + Sync>| ManifestError::Malformed {
            what,
            digest,
            source,
        };
        let kind: Kind = serde_json::from_slice(bytes).map_err(|e| malformed("manifest", e.into()))?;
        if kind.manifests.is_some() {
            let index: ImageIndex =
                serde_json::from_slice(bytes).map_err(|e| malformed("index", e.into()))?;
            return choose(digest, &index, platform).map(Document::Index);
        }
        if kind.layers.is_none() || kind.config.is_none() {
            let media_type = kind.media_type.unwrap_or_else(|| "document without layers".into());
            return Err(ManifestError::NotAnImage {
                digest,
                media_type: media_type.chars().take(100).collect(),
            });
        }
        let manifest: ImageManifest =
            serde_json::from_slice(bytes).map_err(|e| malformed("manifest", e.into()))?;
        let count = manifest.layers().len();
        if count > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers { digest, count });
        }
        let descriptor = |d| Descriptor::parse(d).map_err(|e| malformed("manifest", Box::new(e)));
        Ok(Document::Manifest(Manifest {
            digest,
            config: descriptor(manifest.config())?,
            layers: manifest.layers().iter().map(descriptor).collect::<Result<_, _>>()?,
        }))
    }
}

/// Enough of a document to tell its kind: old docker manifests carry no media type inside.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

impl Descriptor {
    /// The checked form of a descriptor in a document.
    pub fn parse(descriptor: &oci_spec::image::Descriptor) -> Result<Self, super::InvalidDigest> {
        Ok(Self {
            digest: descriptor.digest().to_string().parse()?,
            size: descriptor.size(),
            media_type: descriptor.media_type().to_string(),
        })
    }
}

/// The entry of an index that serves `platform`: the best match, of equals the first (OCI image-index.md, "manifests").
/// An entry that names no platform (a nested index, or a layout with one image) is taken when none names a match.
fn choose(digest: Digest, index: &ImageIndex, platform: &Platform) -> Result<Descriptor, ManifestError> {
    let mut best: Option<(u8, &oci_spec::image::Descriptor)> = None;
    let mut offered = Vec::new();
    for entry in index.manifests() {
        let rank = match entry.platform() {
            Some(p) => {
                let p = Platform {
                    os: p.os().to_string(),
                    architecture: p.architecture().to_string(),
                    variant: p.variant().clone(),
                };
                // Attestations are listed as unknown/unknown.
                if p.os != "unknown" {
                    offered.push(p.to_string());
                }
                platform.match_rank(&p)
            }
            None => Some(0),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(found, _)| rank > found)
        {
            best = Some((rank, entry));
        }
    }
    let (_, entry) =
        best.ok_or_else(|| ManifestError::NoSuchPlatform { digest, wanted: platform.clone(), offered })?;
    Descriptor::parse(entry).map_err(|e| ManifestError::Malformed {
        what: "index",
        digest,
        source: Box::new(e),
    })
}

/// The image configuration `bytes`, whose digest the caller has verified, with its diff_ids: the digests of the uncompressed layers.
pub fn parse_config(
    manifest: &Manifest,
    bytes: &[u8],
) -> Result<(super::ImageConfig, Vec<Digest>), ManifestError> {
    let malformed = |source: Box<dyn std::error::Error + Send + Sync>| ManifestError::Malformed {
        what: "configuration",
        digest: manifest.config.digest,
        source,
    };
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|e| malformed(e.into()))?;
    let diff_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(|e| malformed(Box::new(e)))?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(ManifestError::LayerCount {
            digest: manifest.digest,
            layers: manifest.layers.len(),
            diff_ids: diff_ids.len(),
        });
    }
    Ok((super::ImageConfig::from(&config), diff_ids))
}
