//! An image as the commands and the API show it. The JSON is an interface: fields are added, not changed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rootfs_builder::image::{Digest, ImageConfig};
use rootfs_builder::reference::ImageName;
use rootfs_builder::store::Image;
use serde::Serialize;
use utoipa::ToSchema;

/// An image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Image)]
pub(crate) struct View {
    /// The name, as it is typed.
    pub(crate) reference: String,
    /// `local` or `registry`.
    kind: &'static str,
    /// Of the manifest.
    pub(crate) digest: Digest,
    /// Of the root file system: what it was made from, and how.
    derivation: Digest,
    pub(crate) platform: String,
    config: ImageConfig,
    layers: Vec<Layer>,
    /// The image file, an absolute path.
    pub(crate) rootfs: String,
    /// Its length in bytes.
    pub(crate) size_bytes: u64,
    /// What it takes on disk, in bytes.
    pub(crate) allocated_bytes: u64,
    /// Files, directories and so on in it.
    inodes: u64,
    /// RFC 3339, as the next two.
    created_at: String,
    pulled_at: String,
    used_at: String,
}

/// A layer of an image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Layer {
    digest: Digest,
    diff_id: Digest,
    media_type: String,
    /// As it was stored at the source, in bytes.
    size_bytes: u64,
}

impl View {
    pub(crate) fn of(image: &Image) -> Self {
        let record = &image.record;
        let layers = record.manifest.layers.iter().zip(&record.recipe.diff_ids);
        let layers = layers.map(|(layer, diff_id)| Layer {
            digest: layer.digest,
            diff_id: *diff_id,
            media_type: layer.media_type.clone(),
            size_bytes: layer.size,
        });
        Self {
            reference: image.reference.name.to_string(),
            kind: match image.reference.name {
                ImageName::Local { .. } => "local",
                ImageName::Registry { .. } => "registry",
            },
            digest: record.manifest.digest,
            derivation: image.reference.image,
            platform: record.recipe.platform.clone(),
            config: record.config.clone(),
            layers: layers.collect(),
            rootfs: image.path.display().to_string(),
            size_bytes: record.size_bytes,
            allocated_bytes: image.allocated_bytes,
            inodes: record.inodes,
            created_at: seconds(record.created_at),
            pulled_at: seconds(image.reference.pulled_at),
            used_at: rfc3339(image.used_at),
        }
    }
}

fn seconds(since_1970: u64) -> String {
    rfc3339(UNIX_EPOCH.checked_add(Duration::from_secs(since_1970)).unwrap_or(UNIX_EPOCH))
}

/// humantime panics beyond the year 9999, and a clock or a record may say anything.
fn rfc3339(time: SystemTime) -> String {
    const END: Duration = Duration::from_secs(253_402_300_799);
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(END);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}
