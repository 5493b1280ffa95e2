//! What went wrong with an image, for programs. An interface: words are added, not changed.

use rootfs_builder::convert::ConvertError;
use rootfs_builder::ext4::Ext4Error;
use rootfs_builder::image::ManifestError;
use rootfs_builder::pull::PullError;
use rootfs_builder::registry::RegistryError;
use rootfs_builder::source::SourceError;
use rootfs_builder::store::StoreError;

pub(crate) const NOT_FOUND: &str = "notFound";
pub(crate) const UNAUTHORIZED: &str = "unauthorized";
pub(crate) const RATE_LIMITED: &str = "rateLimited";
pub(crate) const NETWORK: &str = "network";
pub(crate) const NO_SPACE: &str = "noSpace";
pub(crate) const INVALID_IMAGE: &str = "invalidImage";
pub(crate) const DAMAGED_STORE: &str = "damagedStore";
pub(crate) const USAGE: &str = "usage";
/// The sandbox is in another state, or the name is taken.
pub(crate) const CONFLICT: &str = "conflict";
pub(crate) const IO: &str = "io";
/// What has no better name.
pub(crate) const FAILED: &str = "failed";

pub(crate) fn of_pull(error: &PullError) -> &'static str {
    match error {
        PullError::Registry(error) => of_registry(error),
        PullError::Source(error) => of_source(error),
        PullError::Store(error) => of_store(error),
        PullError::Manifest(error) => of_manifest(error),
        PullError::Convert { source: ConvertError::Ext4(Ext4Error::Write(_)), .. } => IO,
        PullError::Convert { .. } => INVALID_IMAGE,
        PullError::Platform { .. } | PullError::LayersGone(_) => NOT_FOUND,
        PullError::NameNeeded(_) | PullError::SizeTooSmall { .. } => USAGE,
        PullError::Task(_) => FAILED,
    }
}

pub(crate) fn of_registry(error: &RegistryError) -> &'static str {
    match error {
        RegistryError::NotFound { .. } => NOT_FOUND,
        RegistryError::Unauthorized { .. } | RegistryError::LoginRefused { .. } => UNAUTHORIZED,
        RegistryError::RateLimited { .. } => RATE_LIMITED,
        RegistryError::UnknownHost { .. }
        | RegistryError::Refused { .. }
        | RegistryError::Tls { .. }
        | RegistryError::Timeout { .. }
        | RegistryError::Connection { .. }
        | RegistryError::Truncated { .. } => NETWORK,
        RegistryError::Manifest { source, .. } => of_manifest(source),
        RegistryError::BlobNotFound { .. }
        | RegistryError::DigestMismatch { .. }
        | RegistryError::Size { .. }
        | RegistryError::TooDeep { .. } => INVALID_IMAGE,
        RegistryError::Host { .. } | RegistryError::DigestAlgorithm { .. } => USAGE,
        RegistryError::Part { .. } | RegistryError::CredentialFile { .. } => IO,
        _ => FAILED,
    }
}

fn of_source(error: &SourceError) -> &'static str {
    match error {
        SourceError::Read { .. } => IO,
        SourceError::Tag { .. } => NOT_FOUND,
        SourceError::Manifest { source, .. } => of_manifest(source),
        SourceError::Store(error) => of_store(error),
        _ => INVALID_IMAGE,
    }
}

fn of_manifest(error: &ManifestError) -> &'static str {
    match error {
        ManifestError::NoSuchPlatform { .. } => NOT_FOUND,
        _ => INVALID_IMAGE,
    }
}

pub(crate) fn of_store(error: &StoreError) -> &'static str {
    match error {
        StoreError::NoSpace { .. } => NO_SPACE,
        StoreError::NotFound(_) => NOT_FOUND,
        StoreError::InUse { .. } => CONFLICT,
        StoreError::Size { .. } => INVALID_IMAGE,
        StoreError::Io { .. } => IO,
        _ => DAMAGED_STORE,
    }
}
