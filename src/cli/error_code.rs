//! What went wrong, for programs: the `code` of a JSON error. An interface: codes are added, not changed.

use protocol::ErrorCode;
use rootfs_builder::convert::ConvertError;
use rootfs_builder::ext4::Ext4Error;
use rootfs_builder::image::ManifestError;
use rootfs_builder::pull::PullError;
use rootfs_builder::reference::NameError;
use rootfs_builder::registry::RegistryError;
use rootfs_builder::source::SourceError;
use rootfs_builder::store::StoreError;

use super::error::CliError;
use crate::client::ClientError;
use crate::sandbox::{ExecError, KernelError, LaunchError};

const NOT_FOUND: &str = "notFound";
const UNAUTHORIZED: &str = "unauthorized";
const RATE_LIMITED: &str = "rateLimited";
const NETWORK: &str = "network";
const NO_SPACE: &str = "noSpace";
const INVALID_IMAGE: &str = "invalidImage";
const DAMAGED_STORE: &str = "damagedStore";
const CONFIGURATION: &str = "configuration";
const USAGE: &str = "usage";
const INTERRUPTED: &str = "interrupted";
const IO: &str = "io";
/// The machine has no KVM that this user can use.
const NO_KVM: &str = "noKvm";
/// The machine of a sandbox has ended, or cannot be talked to.
const MACHINE: &str = "machine";
/// This host does not run machines.
const UNUSABLE: &str = "unusable";
/// The daemon cannot be asked.
const DAEMON: &str = "daemon";
/// The sandbox is in another state, or the name is taken.
const CONFLICT: &str = "conflict";
/// There are enough sandboxes, or they have enough memory.
const LIMIT: &str = "limit";
/// What has no better name.
const FAILED: &str = "failed";

pub(super) fn of(error: &CliError) -> &'static str {
    match error {
        CliError::Pull { source, .. } => of_pull(source),
        CliError::Login { source, .. } | CliError::Logout { source, .. } => of_registry(source),
        CliError::Registry(error) => of_registry(error),
        CliError::Store(error) => of_store(error),
        CliError::Name(NameError::DefaultImage)
        | CliError::Kernel(KernelError::Missing(_))
        | CliError::NoInterpreter(_) => NOT_FOUND,
        CliError::Name(_) | CliError::Usage(_) => USAGE,
        CliError::Config(_) => CONFIGURATION,
        CliError::Unusable(_) => UNUSABLE,
        CliError::Interrupted { .. } => INTERRUPTED,
        CliError::Launch { source, .. } => of_launch(source),
        CliError::Exec { source, .. } => of_exec(source),
        CliError::Client(error) => of_client(error),
        CliError::Daemon(_) => FAILED,
        CliError::Ended(_) => MACHINE,
        CliError::Kernel(_)
        | CliError::Sandbox(_)
        | CliError::Terminal(_)
        | CliError::Runtime(_)
        | CliError::Input { .. }
        | CliError::Copy { .. }
        | CliError::Remove { .. }
        | CliError::Output(_) => IO,
    }
}

fn of_launch(error: &LaunchError) -> &'static str {
    match error {
        LaunchError::NoKvm | LaunchError::KvmDenied(_) | LaunchError::Kvm(_) => NO_KVM,
        LaunchError::Directory(_) | LaunchError::Host { .. } => IO,
        LaunchError::Ended(_) | LaunchError::Silent(_) | LaunchError::Agent(_) | LaunchError::Version(_) => {
            MACHINE
        }
    }
}

fn of_exec(error: &ExecError) -> &'static str {
    let ExecError::Refused(refused) = error else { return MACHINE };
    match refused.code {
        ErrorCode::NotFound => NOT_FOUND,
        ErrorCode::Internal | ErrorCode::Other => FAILED,
        _ => USAGE,
    }
}

fn of_client(error: &ClientError) -> &'static str {
    match error.kind() {
        "" => DAEMON,
        "notFound"
        | "imageNotFound"
        | "commandNotFound"
        | "interpreterNotFound"
        | "noSuchProcess"
        | "fileNotFound"
        | "noKernel" => NOT_FOUND,
        "wrongState" | "nameTaken" | "processEnded" | "fileExists" => CONFLICT,
        "fileDenied" => IO,
        "noSpace" => NO_SPACE,
        "limit" => LIMIT,
        "noKvm" => NO_KVM,
        "machine" => MACHINE,
        "failed" | "ending" => FAILED,
        _ => USAGE,
    }
}

fn of_pull(error: &PullError) -> &'static str {
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

fn of_registry(error: &RegistryError) -> &'static str {
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

fn of_store(error: &StoreError) -> &'static str {
    match error {
        StoreError::NoSpace { .. } => NO_SPACE,
        StoreError::NotFound(_) => NOT_FOUND,
        StoreError::Size { .. } => INVALID_IMAGE,
        StoreError::Io { .. } => IO,
        _ => DAMAGED_STORE,
    }
}
