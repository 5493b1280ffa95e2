//! What answers are made of, beside what the types of [`super::types`] say of sandboxes and commands.

use rootfs_builder::progress;
use rootfs_builder::store::Removal;
use serde::Serialize;
use utoipa::ToSchema;

use super::files::File;
use super::types::{End, Process, Sandbox};
use crate::daemon::Got;
use crate::images::View;

/// An answer with what was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Envelope<T> {
    /// `success`.
    pub(super) status: &'static str,
    /// What was done.
    pub(super) message: &'static str,
    pub(super) data: T,
}

/// Whether the daemon serves.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    pub(super) status: &'static str,
}

/// Sandboxes, page by page.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Sandboxes {
    /// `success`.
    pub(super) status: &'static str,
    pub(super) message: &'static str,
    pub(super) data: Vec<Sandbox>,
    pub(super) meta: Meta,
}

/// Which page it is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    /// Counted from 1.
    pub(super) page: usize,
    /// So many on a page.
    pub(super) limit: usize,
    /// So many in all.
    pub(super) total: usize,
    pub(super) total_pages: usize,
}

/// What was removed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Id {
    pub(super) id: String,
}

/// Where a port of a sandbox can be reached.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PublicUrl {
    pub(super) port: u16,
    pub(super) url: String,
}

/// A command runs in the background.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Started {
    /// Always true.
    pub(super) success: bool,
    pub(super) pid: u32,
    pub(super) command: String,
    /// The same once more, for clients that look for it here.
    pub(super) data: StartedCommand,
}

/// A command in the background.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StartedCommand {
    pub(super) pid: u32,
    pub(super) command: String,
}

/// Commands in the background.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Commands {
    /// Always true.
    pub(super) success: bool,
    /// Those that run, and the last 256 that have ended.
    pub(super) processes: Vec<Process>,
    /// The same once more, for clients that look for it here.
    pub(super) data: Vec<Process>,
}

/// A command in the background has ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Waited {
    /// Always true, however the command has ended.
    pub(super) success: bool,
    pub(super) exit_code: i32,
    pub(super) data: End,
}

/// What became of a signal.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Killed {
    /// False where the command had ended already.
    pub(super) success: bool,
    pub(super) message: &'static str,
}

/// What a command that does the same would have said.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Said {
    pub(super) stdout: String,
    /// Always empty.
    pub(super) stderr: String,
    /// Always 0.
    pub(super) exit_code: i32,
}

/// What is in a directory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listed {
    /// Always true.
    pub(super) success: bool,
    pub(super) files: Vec<File>,
    /// Whether there is more than is told.
    pub(super) truncated: bool,
}

/// What a search has found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Found {
    pub(super) files: Vec<File>,
    /// Whether there is more than is told.
    pub(super) truncated: bool,
    #[serde(flatten)]
    pub(super) said: Said,
}

/// A file or directory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stat {
    #[serde(flatten)]
    pub(super) file: File,
    #[serde(flatten)]
    pub(super) said: Said,
}

/// What has come into the sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Written {
    pub(super) path: String,
    /// Bytes of the request's body.
    pub(super) size: u64,
}

/// A session, of a watch or of a terminal.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionId {
    pub(super) session_id: String,
}

/// A terminal that goes on without connections.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSession {
    pub(super) session_id: String,
    /// RFC 3339.
    pub(super) created_at: String,
}

/// Terminals.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Sessions {
    pub(super) sessions: Vec<Session>,
}

/// A terminal in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Session {
    pub(super) id: String,
    /// RFC 3339.
    pub(super) created_at: String,
    /// Connections to it.
    pub(super) clients: u32,
    /// Always true: it is not listed when it has ended.
    pub(super) alive: bool,
}

/// What a terminal has shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Shown {
    /// The last MiB, as text.
    pub(super) output: String,
}

/// What became of an action at a terminal.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionExecuted {
    /// False where the command's exit code is not 0, or is not known.
    pub(super) success: bool,
    pub(super) session_id: String,
    /// Of `exec`: what the command has printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<String>,
    /// Of `exec`, when the command has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i32>,
    /// Of `exec`: why there is no exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// All images.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Images {
    /// `success`.
    pub(super) status: &'static str,
    pub(super) message: &'static str,
    pub(super) data: Vec<View>,
    /// What is wrong with those that cannot be shown.
    pub(super) damaged: Vec<String>,
}

/// What went with the name of an image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RemovedImage {
    pub(super) removed: Vec<Removal>,
    /// Bytes on disk that are free now.
    pub(super) freed_bytes: u64,
}

/// A line about an image that is on its way: a step, or else the last line. An `error` has the members of a problem document.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Progress {
    /// One step.
    Step(progress::Event),
    /// The image is there.
    Done {
        /// `done`.
        event: &'static str,
        #[serde(flatten)]
        got: Box<Got>,
    },
    /// It has failed.
    Error {
        /// `error`.
        event: &'static str,
        #[serde(flatten)]
        problem: super::problem::Document,
    },
}

/// One of a stream of server-sent events, as a client sees it.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "for the document: events are written as they are")]
pub(super) struct ServerSentEvent {
    /// What it tells of, as `stdout`, `exit` or `error`.
    event: String,
    /// Text, or JSON.
    data: String,
}
