//! What an image is, wherever it comes from: digests, manifest, platform, configuration.

mod config;
mod digest;
mod manifest;
mod platform;
mod text;

pub use config::ImageConfig;
pub use digest::{Digest, InvalidDigest};
pub use manifest::{
    Descriptor, Document, MAX_DOCUMENT, MAX_INDEX_DEPTH, MAX_LAYERS, Manifest, ManifestError, parse_config,
};
pub use platform::{InvalidPlatform, Platform};
#[cfg(feature = "pull")]
pub(crate) use text::Human;
pub(crate) use text::listed;
