//! `/snapshots`: taken of sandboxes, listed, shown, removed. `fromSnapshot` makes sandboxes from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answers::Envelope;
use super::input::{Body, Target};
use super::problem::Problem;
use super::{sandboxes, success};
use crate::daemon::Daemon;
use crate::snapshots;

type Answer<T> = Result<Json<Envelope<T>>, Problem>;
/// The name in the path, which may be no text.
type Named = Result<Path<String>, PathRejection>;

/// A snapshot that is to be taken.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Take {
    /// What it is to be called: as a sandbox, by 1 to 63 of a-z, 0-9 and '-'.
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// What was removed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = SnapshotName)]
pub(crate) struct Name {
    pub(crate) name: String,
}

/// A snapshot: the machine of a sandbox with its disk, as it was at a moment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    /// The image under its disk.
    pub(crate) image: String,
    /// vCPUs.
    pub(crate) cpu: u8,
    /// MiB.
    pub(crate) mem: u32,
    /// MiB.
    #[serde(rename = "diskMB")]
    pub(crate) disk_mb: u64,
    /// Whether there is a network device: without one a sandbox from it has the network `none`.
    pub(crate) network: bool,
    /// The name of the sandbox that it was taken of, at that time.
    pub(crate) sandbox: String,
    /// What its kernel was booted from.
    pub(crate) kernel: String,
    /// The release of voidrun that has taken it.
    pub(crate) release: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub(crate) created_at: String,
    /// What it takes on the disk.
    pub(crate) bytes: u64,
}

impl From<snapshots::About> for Snapshot {
    fn from(snapshots::About { name, record, bytes }: snapshots::About) -> Self {
        let created_at = UNIX_EPOCH + Duration::from_millis(record.created_at_ms);
        Self {
            name,
            image: record.image_name,
            cpu: record.cpus.get(),
            mem: record.memory_mib.into(),
            disk_mb: record.disk_bytes >> 20,
            network: record.network,
            sandbox: record.sandbox,
            kernel: record.kernel.display().to_string(),
            release: record.release,
            labels: record.labels,
            created_at: humantime::format_rfc3339_millis(created_at).to_string(),
            bytes,
        }
    }
}

/// Takes a snapshot of a sandbox that runs, is paused or sleeps: its memory, its devices and its disk.
///
/// The sandbox stands still meanwhile, and goes on as it was.
#[utoipa::path(
    post, path = "/sandboxes/{id}/snapshots", operation_id = "takeSnapshot", tag = "snapshots",
    request_body = Take,
    responses((status = 201, description = "The snapshot", body = Envelope<Snapshot>))
)]
pub(super) async fn take(
    State(daemon): State<Arc<Daemon>>,
    Target(sandbox): Target,
    Body(body): Body<Take>,
) -> Result<(StatusCode, Json<Envelope<Snapshot>>), Problem> {
    let labels = sandboxes::checked(body.labels.unwrap_or_default())?;
    let taken = daemon.take_snapshot(&sandbox, body.name, labels).await?;
    Ok((StatusCode::CREATED, success("snapshot taken", taken.about().into())))
}

/// Lists the snapshots, by name.
#[utoipa::path(
    get, path = "/snapshots", operation_id = "listSnapshots", tag = "snapshots",
    responses((status = 200, description = "All of them", body = Envelope<Vec<Snapshot>>))
)]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<Snapshot>> {
    let found = daemon.list_snapshots().await?;
    Ok(success("snapshots", found.into_iter().map(Snapshot::from).collect()))
}

/// Shows a snapshot.
#[utoipa::path(
    get, path = "/snapshots/{name}", operation_id = "getSnapshot", tag = "snapshots",
    responses((status = 200, description = "The snapshot", body = Envelope<Snapshot>))
)]
pub(super) async fn get(State(daemon): State<Arc<Daemon>>, name: Named) -> Answer<Snapshot> {
    Ok(success("snapshot", daemon.snapshot(text(name)?).await?.about().into()))
}

/// Removes a snapshot.
///
/// Sandboxes that were made from it stay as they are.
#[utoipa::path(
    delete, path = "/snapshots/{name}", operation_id = "removeSnapshot", tag = "snapshots",
    responses((status = 200, description = "It is gone", body = Envelope<Name>))
)]
pub(super) async fn remove(State(daemon): State<Arc<Daemon>>, name: Named) -> Answer<Name> {
    let name = text(name)?;
    daemon.remove_snapshot(name.clone()).await?;
    Ok(success("snapshot removed", Name { name }))
}

fn text(name: Named) -> Result<String, Problem> {
    name.map(|Path(text)| text).map_err(|e| Problem::bad_request(e.body_text()))
}
