//! `files/watch`: one request begins, and a WebSocket tells what happens, an event in each message.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::extract::{Path, State};
use axum::response::Response;
use protocol::{FileEvent, FileEventKind, FileRequest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answers::{Envelope, SessionId};
use super::files::GuestPath;
use super::input::{Awake, Body};
use super::problem::Problem;
use super::success;
use super::types::time;
use super::websocket::{Upgrade, close_frame, daemon_ends};
use crate::daemon::{Connection, Daemon, Sandbox, chain};
use crate::sandbox::FileEvents;

/// A follower has nothing to say.
const MAX_MESSAGE: usize = 4096;

/// What is to be watched.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Watch {
    path: GuestPath,
    /// Whether directories below it are watched too; not where it is absent.
    recursive: Option<bool>,
    /// Directories whose name begins with a dot are left out, unless this is false.
    ignore_hidden: Option<bool>,
}

/// A message of a watch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = FileEvent)]
pub(super) struct Event {
    #[serde(rename = "type")]
    kind: FileEventKind,
    /// Of an overflow, after which events are missing, the path that is watched.
    path: String,
    /// Where a renamed one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_path: Option<String>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// RFC 3339.
    timestamp: String,
}

impl From<FileEvent> for Event {
    fn from(event: FileEvent) -> Self {
        let FileEvent { kind, path, old_path, size, time_ms } = event;
        Self { kind, path, old_path, size, timestamp: time(time_ms) }
    }
}

/// Begins to watch a file or directory.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/watch", operation_id = "watchFiles", tag = "files",
    request_body = Watch,
    responses(
        (
            status = 200,
            description = "It has begun, and waits a minute for its WebSocket",
            body = Envelope<SessionId>
        )
    )
)]
pub(super) async fn begin(
    Awake(sandbox): Awake,
    Body(body): Body<Watch>,
) -> Result<Json<Envelope<SessionId>>, Problem> {
    let request = FileRequest::Watch {
        path: body.path.0,
        recursive: body.recursive.unwrap_or(false),
        ignore_hidden: body.ignore_hidden.unwrap_or(true),
    };
    let session_id = sandbox.watch(request).await?;
    Ok(success("watch begun", SessionId { session_id }))
}

/// Tells by WebSocket what happens to what is watched. The watch ends with it.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/watch/{session}/stream", operation_id = "followWatch", tag = "files",
    responses((status = 101, description = "A `FileEvent` in each message"))
)]
pub(super) async fn follow(
    State(daemon): State<Arc<Daemon>>,
    path: Result<Path<(String, String)>, PathRejection>,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    let Path((key, session)) = path.map_err(|e| Problem::bad_request(e.body_text()))?;
    let sandbox = daemon.find(&key)?;
    let events = sandbox.follow(&session)?;
    Ok(upgrade.begin(MAX_MESSAGE, async move |socket, connection| {
        pass(&sandbox, events, socket, &connection).await;
    }))
}

/// Returns when the watch is over, or the client has gone.
async fn pass(sandbox: &Sandbox, mut events: FileEvents, mut socket: WebSocket, connection: &Connection) {
    let end = loop {
        let next = tokio::select! {
            next = events.next() => next,
            message = socket.recv() => match message {
                Some(Err(_)) | None => return,
                // Nothing that is said means anything here. Pings are answered by the library, and so is a close: that is
                // sent when the next message is asked for, and there is none.
                Some(Ok(_)) => continue,
            },
            () = connection.ended() => break daemon_ends(),
        };
        match next {
            Ok(Some(event)) => {
                // Nothing in an event is what JSON cannot say.
                let text = serde_json::to_string(&Event::from(event)).unwrap_or_default();
                if socket.send(Message::text(text)).await.is_err() {
                    return;
                }
            }
            Ok(None) => break close_frame(close_code::NORMAL, ""),
            Err(error) => {
                break close_frame(close_code::ERROR, &chain(&sandbox.cause_of_files(error).await));
            }
        }
    };
    // A client that has gone needs no word.
    let _ = socket.send(Message::Close(Some(end))).await;
}
