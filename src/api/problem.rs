//! Errors on the wire: problem documents (RFC 9457), with the members that the published clients read beside them.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::{Error as AgentError, ErrorCode};
use rootfs_builder::reference::NameError;
use rustix::io::Errno;
use serde::Serialize;
use utoipa::ToSchema;

use crate::daemon::{DaemonError, chain};
use crate::images::failure;
use crate::sandbox::{ExecError, LaunchError, PortError};
use crate::snapshots::SnapshotsError;

/// What an error is on the wire.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document {
    /// What it is, for programs: `urn:voidrun:problem:` and a word. Words are added, not changed.
    #[serde(rename = "type")]
    kind: String,
    /// What the status means.
    title: &'static str,
    /// The status of the answer; in a stream what it would have been.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What failed, on what, why, and what to do.
    pub(super) detail: String,
    /// The status, for the published clients, as the next three.
    code: u16,
    /// The detail.
    message: String,
    /// The title.
    error: &'static str,
    /// The detail.
    details: String,
}

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// What it is, for programs: the end of `type`. An interface: kinds are added, not changed.
    kind: &'static str,
    /// What failed, on what, why, and what to do.
    detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into() }
    }

    /// A request that is understood and cannot be carried out: `field` is what is wrong with it.
    pub(super) fn field(field: &str, wrong: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", format!("{field}: {wrong}"))
    }

    pub(super) fn document(&self) -> Document {
        let Self { status, kind, detail } = self;
        let title = status.canonical_reason().unwrap_or("Error");
        Document {
            kind: format!("urn:voidrun:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail: detail.clone(),
            code: status.as_u16(),
            message: detail.clone(),
            error: title,
            details: detail.clone(),
        }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "badRequest", detail)
    }

    /// `what` is part of the API and not built yet.
    pub(super) fn not_implemented(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "notImplemented", format!("{what} is not there yet"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, headers, Json(self.document())).into_response()
    }
}

impl From<DaemonError> for Problem {
    fn from(error: DaemonError) -> Self {
        let (status, kind, advice) = shortage(&error).unwrap_or_else(|| {
            let (status, kind) = classify(&error);
            (status, kind, "")
        });
        Self::new(status, kind, chain(&error) + advice)
    }
}

/// What the host has too little of, where that is the cause, and what to do about it.
fn shortage(error: &DaemonError) -> Option<(StatusCode, &'static str, &'static str)> {
    const NO_DESCRIPTORS: &str = "noDescriptors";
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        match error.downcast_ref().and_then(Errno::from_io_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => {
                return Some((StatusCode::INSUFFICIENT_STORAGE, failure::NO_SPACE, ""));
            }
            Some(Errno::MFILE) => {
                let advice =
                    ": the daemon has as many as it may; `ulimit -n` where it is started raises that";
                return Some((StatusCode::SERVICE_UNAVAILABLE, NO_DESCRIPTORS, advice));
            }
            Some(Errno::NFILE) => {
                let advice = ": all programs of this machine together have as many as they may; \
                              `sysctl fs.file-max` shows and sets that";
                return Some((StatusCode::SERVICE_UNAVAILABLE, NO_DESCRIPTORS, advice));
            }
            _ => next = error.source(),
        }
    }
    None
}

fn classify(error: &DaemonError) -> (StatusCode, &'static str) {
    match error {
        DaemonError::NotFound(_) => (StatusCode::NOT_FOUND, "notFound"),
        DaemonError::NoWatch { .. } => (StatusCode::NOT_FOUND, "noSuchWatch"),
        DaemonError::NoJob(_) => (StatusCode::NOT_FOUND, "noLog"),
        DaemonError::NoTerminal { .. } => (StatusCode::NOT_FOUND, "noTerminal"),
        DaemonError::Snapshots(SnapshotsError::NotFound(_)) => (StatusCode::NOT_FOUND, "noSnapshot"),
        DaemonError::Ambiguous { .. } => (StatusCode::CONFLICT, "ambiguous"),
        DaemonError::NoPort { .. } => (StatusCode::NOT_FOUND, "noPort"),
        DaemonError::PortOf { .. } | DaemonError::Port { source: PortError::Taken { .. }, .. } => {
            (StatusCode::CONFLICT, "portTaken")
        }
        DaemonError::Port { source: PortError::Denied { .. }, .. } => (StatusCode::FORBIDDEN, "portDenied"),
        DaemonError::Port { source: PortError::NoAddress(_), .. } => (WRONG, "invalid"),
        DaemonError::NameTaken { .. } | DaemonError::Snapshots(SnapshotsError::Taken(_)) => {
            (StatusCode::CONFLICT, "nameTaken")
        }
        DaemonError::State { .. }
        | DaemonError::Asleep { .. }
        | DaemonError::NoNetwork(_)
        | DaemonError::Ephemeral { .. } => (StatusCode::CONFLICT, "wrongState"),
        DaemonError::TooMany(_)
        | DaemonError::TooManyPulls(_)
        | DaemonError::TooManyWatches { .. }
        | DaemonError::TooManyTerminals { .. }
        | DaemonError::TooManyPorts { .. }
        | DaemonError::TooManyFollowers(_)
        | DaemonError::TooMuchMemory { .. } => (StatusCode::TOO_MANY_REQUESTS, "limit"),
        DaemonError::ImageName(NameError::DefaultImage) => of_image(failure::NOT_FOUND),
        DaemonError::InvalidName(_)
        | DaemonError::OtherMachine { .. }
        | DaemonError::NoNetworkIn(_)
        | DaemonError::Policy(_)
        | DaemonError::ImageSize(_)
        | DaemonError::ImageName(_)
        | DaemonError::Exec { source: ExecError::TooLong(_), .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid")
        }
        DaemonError::Kernel(_) => (StatusCode::SERVICE_UNAVAILABLE, "noKernel"),
        DaemonError::Launch { source, .. } => match source {
            LaunchError::NoKvm | LaunchError::KvmDenied(_) | LaunchError::Kvm(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "noKvm")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "machine"),
        },
        DaemonError::Exec { source: ExecError::Refused(refused), .. } => of_agent(refused),
        DaemonError::Exec { .. } | DaemonError::Ended { .. } | DaemonError::Lost { .. } => {
            (StatusCode::BAD_GATEWAY, "machine")
        }
        DaemonError::Silent { .. } => (StatusCode::GATEWAY_TIMEOUT, "machine"),
        DaemonError::Ending => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
        DaemonError::Store(error) => of_image(failure::of_store(error)),
        DaemonError::Pull { source, .. } => of_image(failure::of_pull(source)),
        DaemonError::Port { .. }
        | DaemonError::Directory(_)
        | DaemonError::Control { .. }
        | DaemonError::Snapshot { .. }
        | DaemonError::Restore { .. }
        | DaemonError::Disk { .. }
        | DaemonError::Snapshots(_)
        | DaemonError::Host { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
    }
}

/// What the client is to change.
const WRONG: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

fn of_image(failure: &'static str) -> (StatusCode, &'static str) {
    match failure {
        failure::NOT_FOUND => (WRONG, "imageNotFound"),
        failure::CONFLICT => (StatusCode::CONFLICT, "imageInUse"),
        failure::INVALID_IMAGE => (WRONG, failure),
        failure::USAGE => (WRONG, "invalid"),
        // What a registry says of us is not what we say of the client.
        failure::UNAUTHORIZED | failure::RATE_LIMITED | failure::NETWORK => {
            (StatusCode::BAD_GATEWAY, failure)
        }
        failure::NO_SPACE => (StatusCode::INSUFFICIENT_STORAGE, failure),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
    }
}

fn of_agent(refused: &AgentError) -> (StatusCode, &'static str) {
    match refused.code {
        ErrorCode::File => of_file(refused.errno),
        ErrorCode::NotFound => (WRONG, "commandNotFound"),
        ErrorCode::NotExecutable => (WRONG, "commandNotExecutable"),
        ErrorCode::NoShell => (WRONG, "noShell"),
        ErrorCode::NoSuchProcess => (StatusCode::NOT_FOUND, "noSuchProcess"),
        ErrorCode::ProcessEnded => (StatusCode::CONFLICT, "processEnded"),
        ErrorCode::Cwd | ErrorCode::User | ErrorCode::Archive | ErrorCode::BadRequest => (WRONG, "invalid"),
        ErrorCode::Internal | ErrorCode::Other => (StatusCode::BAD_GATEWAY, "machine"),
    }
}

/// Why a file could not be read or written, by the system's error number.
fn of_file(errno: Option<i32>) -> (StatusCode, &'static str) {
    match errno.map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => (StatusCode::NOT_FOUND, "fileNotFound"),
        Some(Errno::EXIST | Errno::NOTEMPTY) => (StatusCode::CONFLICT, "fileExists"),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => (StatusCode::FORBIDDEN, "fileDenied"),
        Some(Errno::NOSPC | Errno::DQUOT) => (StatusCode::INSUFFICIENT_STORAGE, "noSpace"),
        Some(Errno::ISDIR) => (WRONG, "isDirectory"),
        Some(Errno::NOTDIR) => (WRONG, "notDirectory"),
        Some(Errno::IO | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => (StatusCode::BAD_GATEWAY, "machine"),
        _ => (WRONG, "invalid"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_limit_of_files_it_is() {
        for (errno, ours, other) in
            [(Errno::MFILE, "ulimit -n", "file-max"), (Errno::NFILE, "fs.file-max", "ulimit")]
        {
            let launch =
                LaunchError::Host { action: "make a pair of sockets", source: std::io::Error::from(errno) };
            let error = DaemonError::Launch { name: "dev".into(), image: "debian".into(), source: launch };
            let Document { kind, status, detail, .. } = Problem::from(error).document();
            assert_eq!((&*kind, status), ("urn:voidrun:problem:noDescriptors", 503));
            assert!(detail.contains(ours) && !detail.contains(other), "{detail}");
        }
    }
}
