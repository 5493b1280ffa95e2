//! What went wrong, for programs: the `code` of a JSON error. An interface: codes are added, not changed.

use protocol::ErrorCode;
use rootfs_builder::reference::NameError;

use super::error::CliError;
use crate::client::ClientError;
use crate::images::failure::{
    CONFLICT, FAILED, IO, NO_SPACE, NOT_FOUND, USAGE, of_pull, of_registry, of_store,
};
use crate::sandbox::{ExecError, KernelError};

const CONFIGURATION: &str = "configuration";
const INTERRUPTED: &str = "interrupted";
/// The machine has no KVM that this user can use.
const NO_KVM: &str = "noKvm";
/// The machine of a sandbox has ended, or cannot be talked to.
const MACHINE: &str = "machine";
/// This host does not run machines.
const UNUSABLE: &str = "unusable";
/// The daemon cannot be asked.
const DAEMON: &str = "daemon";
/// There are enough sandboxes, or they have enough memory.
const LIMIT: &str = "limit";

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
        CliError::Exec { source, .. } => of_exec(source),
        CliError::Client(error) => of_client(error),
        CliError::Daemon(_) => FAILED,
        CliError::Kernel(_)
        | CliError::Sandbox(_)
        | CliError::Snapshots(_)
        | CliError::Terminal(_)
        | CliError::Runtime(_)
        | CliError::Input { .. }
        | CliError::Copy { .. }
        | CliError::Remove { .. }
        | CliError::Output(_) => IO,
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
        | "noPort"
        | "noKernel" => NOT_FOUND,
        "wrongState" | "nameTaken" | "imageInUse" | "portTaken" | "processEnded" | "fileExists" => CONFLICT,
        "fileDenied" | "portDenied" => IO,
        "noSpace" => NO_SPACE,
        "limit" => LIMIT,
        "noKvm" => NO_KVM,
        "machine" => MACHINE,
        "failed" | "ending" => FAILED,
        _ => USAGE,
    }
}
