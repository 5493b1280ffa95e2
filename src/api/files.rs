//! `files`: looked at, changed, and their content in and out as it comes.
//!
//! For the published clients, which run commands for it, some answers say in `stdout` and `exitCode` as well what such a command
//! would have.

use std::sync::Arc;

use axum::body::Body as Content;
use axum::extract::Request as Incoming;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use protocol::{FileInfo, FileKind, FileRequest, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::input::{Body, Parameters, Target};
use super::problem::Problem;
use super::types::time;
use super::{success, transfer, watch};
use crate::daemon::{Daemon, Sandbox};

/// The longest path that the guest's kernel takes, in bytes.
const MAX_PATH: usize = 4095;

type Answer = Result<Json<Value>, Problem>;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/sandboxes/{id}/files", get(list).delete(delete))
        .route("/sandboxes/{id}/files/upload", post(upload))
        .route("/sandboxes/{id}/files/download", get(download))
        .route("/sandboxes/{id}/files/archive", get(pack).put(unpack))
        .route("/sandboxes/{id}/files/create", post(create))
        .route("/sandboxes/{id}/files/stat", get(stat))
        .route("/sandboxes/{id}/files/mkdir", post(mkdir))
        .route("/sandboxes/{id}/files/move", post(rename))
        .route("/sandboxes/{id}/files/copy", post(copy))
        .route("/sandboxes/{id}/files/chmod", post(chmod))
        .route("/sandboxes/{id}/files/search", get(search))
        .route("/sandboxes/{id}/files/watch", post(watch::begin))
        .route("/sandboxes/{id}/files/watch/{session}/stream", get(watch::follow))
        .route("/sandboxes/{id}/files/du", get(async |Target(_): Target| later("du")))
        .route("/sandboxes/{id}/files/head-tail", get(async |Target(_): Target| later("head-tail")))
        .route("/sandboxes/{id}/files/compress", post(async |Target(_): Target| later("compress")))
        .route("/sandboxes/{id}/files/extract", post(async |Target(_): Target| later("extract")))
}

fn later(what: &str) -> Problem {
    Problem::not_implemented(&format!("files/{what}"))
}

/// An absolute path of the guest.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct GuestPath(pub(super) String);

impl TryFrom<String> for GuestPath {
    type Error = String;

    fn try_from(path: String) -> Result<Self, String> {
        if path.len() > MAX_PATH {
            return Err(format!("a path of {} bytes, where {MAX_PATH} are allowed", path.len()));
        }
        if !path.starts_with('/') {
            return Err(format!("the path {path:?} does not begin with /"));
        }
        if path.contains('\0') {
            return Err(format!("the path {path:?} has a NUL byte in it"));
        }
        Ok(Self(path))
    }
}

#[derive(Debug, Deserialize)]
struct At {
    path: GuestPath,
}

#[derive(Debug, Deserialize)]
struct FromTo {
    from: GuestPath,
    to: GuestPath,
}

#[derive(Debug, Deserialize)]
struct WithMode {
    path: GuestPath,
    /// In octal.
    mode: Option<String>,
}

#[derive(Debug, Deserialize)]
struct New {
    path: GuestPath,
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NewContent {
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Search {
    path: GuestPath,
    pattern: String,
}

#[derive(Debug, Deserialize)]
struct Pack {
    path: GuestPath,
    /// To take what a symlink at the path points to.
    #[serde(default)]
    follow: bool,
}

/// A file on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Permission bits in octal, as "0644".
    pub(crate) mode: String,
    pub(crate) is_dir: bool,
    pub(crate) mod_time: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    #[serde(rename = "type")]
    pub(crate) kind: FileKind,
    /// What a symlink points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
}

impl From<FileInfo> for File {
    fn from(info: FileInfo) -> Self {
        let name = info.path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
        Self {
            name: name.to_owned(),
            path: info.path.clone(),
            size: info.size,
            mode: format!("{:04o}", info.mode),
            is_dir: info.is_dir,
            mod_time: time(info.modified_ms),
            uid: info.uid,
            gid: info.gid,
            kind: info.kind,
            target: info.target,
        }
    }
}

/// The answer with `data`, and with what a command would have said.
fn command(message: &str, mut data: Value, stdout: String) -> Json<Value> {
    data["stdout"] = stdout.into();
    data["stderr"] = "".into();
    data["exitCode"] = 0.into();
    success(message, data)
}

async fn list(Target(sandbox): Target, Parameters(At { path }): Parameters<At>) -> Answer {
    let found = sandbox.entries(FileRequest::List { path: path.0 }).await?;
    let files: Vec<File> = found.entries.into_iter().map(File::from).collect();
    Ok(success("files", json!({ "success": true, "files": files, "truncated": found.truncated })))
}

async fn search(Target(sandbox): Target, Parameters(Search { path, pattern }): Parameters<Search>) -> Answer {
    if pattern.contains('\0') || pattern.len() > MAX_PATH {
        return Err(Problem::field("pattern", "has a NUL byte in it, or is longer than any name"));
    }
    let found = sandbox.entries(FileRequest::Search { path: path.0, pattern }).await?;
    let stdout = found.entries.iter().flat_map(|file| [&file.path, "\n"]).collect();
    let files: Vec<File> = found.entries.into_iter().map(File::from).collect();
    Ok(command("files found", json!({ "files": files, "truncated": found.truncated }), stdout))
}

async fn stat(Target(sandbox): Target, Parameters(At { path }): Parameters<At>) -> Answer {
    let file = File::from(sandbox.stat(path.0).await?);
    let File { mode, uid, gid, size, mod_time, path, .. } = &file;
    let stdout = format!("{mode} {uid} {gid} {size} {mod_time} {path}\n");
    Ok(command("file", serde_json::to_value(&file).unwrap_or_default(), stdout))
}

async fn change(sandbox: &Sandbox, message: &str, request: FileRequest) -> Answer {
    sandbox.change_file(request).await?;
    Ok(command(message, json!({}), String::new()))
}

async fn mkdir(Target(sandbox): Target, Parameters(At { path }): Parameters<At>) -> Answer {
    let owner = owner(&sandbox);
    change(&sandbox, "directory made", FileRequest::Mkdir { path: path.0, owner }).await
}

async fn rename(Target(sandbox): Target, Parameters(FromTo { from, to }): Parameters<FromTo>) -> Answer {
    change(&sandbox, "file moved", FileRequest::Move { from: from.0, to: to.0 }).await
}

async fn copy(Target(sandbox): Target, Parameters(FromTo { from, to }): Parameters<FromTo>) -> Answer {
    change(&sandbox, "file copied", FileRequest::Copy { from: from.0, to: to.0 }).await
}

async fn chmod(Target(sandbox): Target, Parameters(WithMode { path, mode }): Parameters<WithMode>) -> Answer {
    let mode = octal(mode)?.ok_or_else(|| Problem::field("mode", "is missing: expected one as 644"))?;
    change(&sandbox, "permissions changed", FileRequest::Chmod { path: path.0, mode }).await
}

async fn delete(Target(sandbox): Target, Parameters(At { path }): Parameters<At>) -> Answer {
    change(&sandbox, "file removed", FileRequest::Delete { path: path.0 }).await
}

/// A file that is not there yet, with what the body or else the query says is in it.
async fn create(
    Target(sandbox): Target,
    Parameters(New { path, content }): Parameters<New>,
    Body(body): Body<NewContent>,
) -> Answer {
    let content = body.content.or(content).unwrap_or_default();
    let owner = owner(&sandbox);
    let request = FileRequest::Write { path: path.0, mode: None, exclusive: true, owner };
    transfer::take(&sandbox, Request::File(request), Content::from(content)).await?;
    Ok(command("file created", json!({}), String::new()))
}

/// The body is the file; what is there is replaced when the whole of it has come.
async fn upload(
    Target(sandbox): Target,
    Parameters(WithMode { path, mode }): Parameters<WithMode>,
    request: Incoming,
) -> Answer {
    let (mode, owner) = (octal(mode)?, owner(&sandbox));
    let write = FileRequest::Write { path: path.0.clone(), mode, exclusive: false, owner };
    let size = transfer::take(&sandbox, Request::File(write), request.into_body()).await?;
    Ok(success("file uploaded", json!({ "path": path.0, "size": size })))
}

async fn download(
    Target(sandbox): Target,
    Parameters(At { path }): Parameters<At>,
) -> Result<Response, Problem> {
    let (info, source) = sandbox.read_file(path.0).await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, transfer::give_file(sandbox, source, info.size).await?).into_response())
}

/// A file, or a directory with what is in it, as a tar stream.
async fn pack(
    Target(sandbox): Target,
    Parameters(Pack { path, follow }): Parameters<Pack>,
) -> Result<Response, Problem> {
    let source = sandbox.pack(path.0, follow).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], transfer::give(sandbox, Vec::new(), source, None))
        .into_response())
}

/// The body is a tar stream, unpacked beneath the path.
async fn unpack(
    Target(sandbox): Target,
    Parameters(At { path }): Parameters<At>,
    request: Incoming,
) -> Answer {
    let owner = owner(&sandbox);
    let write = Request::Upload { path: path.0.clone(), owner };
    let size = transfer::take(&sandbox, write, request.into_body()).await?;
    Ok(success("archive unpacked", json!({ "path": path.0, "size": size })))
}

/// Whose what is made is: the commands', unless they say otherwise.
fn owner(sandbox: &Sandbox) -> Option<String> {
    Some(sandbox.view().record.config.user).filter(|user| !user.is_empty())
}

fn octal(mode: Option<String>) -> Result<Option<u32>, Problem> {
    let Some(mode) = mode else { return Ok(None) };
    let digits = mode.strip_prefix("0o").unwrap_or(&mode);
    let valid = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = || Problem::field("mode", format!("{mode:?} is not octal, from 0 to 7777"));
    valid.filter(|_| plain).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (text, mode) in [("755", 0o755), ("0o644", 0o644), ("0000", 0), ("7777", 0o7777)] {
            assert_eq!(octal(Some(text.to_owned())).unwrap(), Some(mode), "{text}");
        }
        for wrong in ["", "+7", "8", "u+x", "10000", "-1", "0x7"] {
            assert!(octal(Some(wrong.to_owned())).is_err(), "{wrong}");
        }
        assert_eq!(octal(None).unwrap(), None);
    }

    #[test]
    fn paths() {
        for wrong in ["", "a", "./a", "/a\0", &format!("/{}", "a".repeat(MAX_PATH))] {
            assert!(GuestPath::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert!(GuestPath::try_from("/ä\nb".to_owned()).is_ok());
    }

    #[test]
    fn a_file_on_the_wire() {
        let info = FileInfo {
            path: "/d/a b".to_owned(),
            kind: FileKind::Symlink,
            is_dir: true,
            size: 3,
            mode: 0o777,
            uid: 1,
            gid: 2,
            modified_ms: 1_700_000_000_123,
            target: Some("x".to_owned()),
        };
        let expected = json!({
            "name": "a b", "path": "/d/a b", "size": 3, "mode": "0777", "isDir": true,
            "modTime": "2023-11-14T22:13:20.123Z", "uid": 1, "gid": 2, "type": "symlink", "target": "x",
        });
        assert_eq!(serde_json::to_value(File::from(info.clone())).unwrap(), expected);
        assert_eq!(File::from(FileInfo { path: "/".to_owned(), ..info }).name, "/");
    }
}
