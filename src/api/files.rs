//! `files`: looked at, changed, and their content in and out as it comes.
//!
//! For the published clients, which run commands for it, some answers say in `stdout` and `exitCode` as well what such a command
//! would have.

use std::sync::Arc;

use axum::Json;
use axum::body::Body as Content;
use axum::extract::Request as Incoming;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use protocol::{FileInfo, FileKind, FileRequest, Request};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answers::{Envelope, Found, Listed, Said, Stat, Written};
use super::input::{Awake, Body, Parameters, Target};
use super::openapi::Binary;
use super::problem::Problem;
use super::types::time;
use super::{success, transfer, watch};
use crate::daemon::{Daemon, Sandbox};

/// The longest path that the guest's kernel takes, in bytes.
const MAX_PATH: usize = 4095;

type Answer<T> = Result<Json<Envelope<T>>, Problem>;

pub(super) fn routes() -> OpenApiRouter<Arc<Daemon>> {
    OpenApiRouter::new()
        .routes(routes!(list, delete))
        .routes(routes!(upload))
        .routes(routes!(download))
        .routes(routes!(pack, unpack))
        .routes(routes!(create))
        .routes(routes!(stat))
        .routes(routes!(mkdir))
        .routes(routes!(rename))
        .routes(routes!(copy))
        .routes(routes!(chmod))
        .routes(routes!(search))
        .routes(routes!(watch::begin))
        .routes(routes!(watch::follow))
        .routes(routes!(du))
        .routes(routes!(head_tail))
        .routes(routes!(compress))
        .routes(routes!(extract))
}

/// Not there yet.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/du", operation_id = "measureFiles", tag = "files",
    responses((status = 501))
)]
async fn du(Target(_): Target) -> Problem {
    Problem::not_implemented("files/du")
}

/// Not there yet.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/head-tail", operation_id = "readPartOfFile", tag = "files",
    responses((status = 501))
)]
async fn head_tail(Target(_): Target) -> Problem {
    Problem::not_implemented("files/head-tail")
}

/// Not there yet.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/compress", operation_id = "compressFiles", tag = "files",
    responses((status = 501))
)]
async fn compress(Target(_): Target) -> Problem {
    Problem::not_implemented("files/compress")
}

/// Not there yet.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/extract", operation_id = "extractFiles", tag = "files",
    responses((status = 501))
)]
async fn extract(Target(_): Target) -> Problem {
    Problem::not_implemented("files/extract")
}

/// An absolute path of the guest.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(pattern = "^/[^\\x00]*$", max_length = 4095)]
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

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct At {
    #[param(inline)]
    path: GuestPath,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct FromTo {
    #[param(inline)]
    from: GuestPath,
    #[param(inline)]
    to: GuestPath,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct WithMode {
    #[param(inline)]
    path: GuestPath,
    /// In octal, as 644.
    mode: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Upload {
    #[param(inline)]
    path: GuestPath,
    /// In octal, as 644; that of what is replaced, or else 644, where it is absent.
    mode: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct New {
    #[param(inline)]
    path: GuestPath,
    content: Option<String>,
}

/// What is in a new file.
#[derive(Debug, Deserialize, ToSchema)]
struct NewContent {
    content: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Search {
    #[param(inline)]
    path: GuestPath,
    pattern: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Pack {
    #[param(inline)]
    path: GuestPath,
    /// To take what a symlink at the path points to.
    #[serde(default)]
    follow: bool,
}

/// A file on the wire.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
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

/// Lists a directory.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files", operation_id = "listFiles", tag = "files",
    params(At),
    responses((status = 200, description = "The files, at most 10,000", body = Envelope<Listed>))
)]
async fn list(Awake(sandbox): Awake, Parameters(At { path }): Parameters<At>) -> Answer<Listed> {
    let found = sandbox.entries(FileRequest::List { path: path.0 }).await?;
    let files: Vec<File> = found.entries.into_iter().map(File::from).collect();
    Ok(success("files", Listed { success: true, files, truncated: found.truncated }))
}

/// Finds what is below a directory by the pattern of its name.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/search", operation_id = "searchFiles", tag = "files",
    params(Search),
    responses((status = 200, description = "The files, at most 10,000", body = Envelope<Found>))
)]
async fn search(
    Awake(sandbox): Awake,
    Parameters(Search { path, pattern }): Parameters<Search>,
) -> Answer<Found> {
    if pattern.contains('\0') || pattern.len() > MAX_PATH {
        return Err(Problem::field("pattern", "has a NUL byte in it, or is longer than any name"));
    }
    let found = sandbox.entries(FileRequest::Search { path: path.0, pattern }).await?;
    let stdout = found.entries.iter().flat_map(|file| [&file.path, "\n"]).collect();
    let files: Vec<File> = found.entries.into_iter().map(File::from).collect();
    let said = Said { stdout, ..Said::default() };
    Ok(success("files found", Found { files, truncated: found.truncated, said }))
}

/// Shows a file or directory; a symlink is followed.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/stat", operation_id = "statFile", tag = "files",
    params(At),
    responses((status = 200, description = "The file", body = Envelope<Stat>))
)]
async fn stat(Awake(sandbox): Awake, Parameters(At { path }): Parameters<At>) -> Answer<Stat> {
    let file = File::from(sandbox.stat(path.0).await?);
    let File { mode, uid, gid, size, mod_time, path, .. } = &file;
    let stdout = format!("{mode} {uid} {gid} {size} {mod_time} {path}\n");
    Ok(success("file", Stat { file, said: Said { stdout, ..Said::default() } }))
}

async fn change(sandbox: &Sandbox, message: &'static str, request: FileRequest) -> Answer<Said> {
    sandbox.change_file(request).await?;
    Ok(success(message, Said::default()))
}

/// Makes a directory, and those above it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/mkdir", operation_id = "makeDirectory", tag = "files",
    params(At),
    responses((status = 200, description = "It is there", body = Envelope<Said>))
)]
async fn mkdir(Awake(sandbox): Awake, Parameters(At { path }): Parameters<At>) -> Answer<Said> {
    let owner = owner(&sandbox);
    change(&sandbox, "directory made", FileRequest::Mkdir { path: path.0, owner }).await
}

/// Gives a file or directory another path; a file that is there is replaced.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/move", operation_id = "moveFile", tag = "files",
    params(FromTo),
    responses((status = 200, description = "It has the other path", body = Envelope<Said>))
)]
async fn rename(Awake(sandbox): Awake, Parameters(FromTo { from, to }): Parameters<FromTo>) -> Answer<Said> {
    change(&sandbox, "file moved", FileRequest::Move { from: from.0, to: to.0 }).await
}

/// Copies a file, or a directory with what is in it; a file that is there is replaced.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/copy", operation_id = "copyFile", tag = "files",
    params(FromTo),
    responses((status = 200, description = "The copy is whole", body = Envelope<Said>))
)]
async fn copy(Awake(sandbox): Awake, Parameters(FromTo { from, to }): Parameters<FromTo>) -> Answer<Said> {
    change(&sandbox, "file copied", FileRequest::Copy { from: from.0, to: to.0 }).await
}

/// Sets permissions; a symlink is followed.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/chmod", operation_id = "changeMode", tag = "files",
    params(WithMode),
    responses((status = 200, description = "It has the permissions", body = Envelope<Said>))
)]
async fn chmod(
    Awake(sandbox): Awake,
    Parameters(WithMode { path, mode }): Parameters<WithMode>,
) -> Answer<Said> {
    let mode = octal(&mode)?;
    change(&sandbox, "permissions changed", FileRequest::Chmod { path: path.0, mode }).await
}

/// Removes a file, or a directory with what is in it.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/files", operation_id = "deleteFile", tag = "files",
    params(At),
    responses((status = 200, description = "It is gone", body = Envelope<Said>))
)]
async fn delete(Awake(sandbox): Awake, Parameters(At { path }): Parameters<At>) -> Answer<Said> {
    change(&sandbox, "file removed", FileRequest::Delete { path: path.0 }).await
}

/// Makes a file that is not there yet, with what the body or else the query says is in it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/create", operation_id = "createFile", tag = "files",
    params(New),
    request_body = NewContent,
    responses((status = 200, description = "It is there", body = Envelope<Said>))
)]
async fn create(
    Awake(sandbox): Awake,
    Parameters(New { path, content }): Parameters<New>,
    Body(body): Body<NewContent>,
) -> Answer<Said> {
    let content = body.content.or(content).unwrap_or_default();
    let owner = owner(&sandbox);
    let request = FileRequest::Write { path: path.0, mode: None, exclusive: true, owner };
    transfer::take(&sandbox, Request::File(request), Content::from(content)).await?;
    Ok(success("file created", Said::default()))
}

/// Writes a file: the body, of any size.
///
/// What is there is replaced when the whole of it has come.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/upload", operation_id = "uploadFile", tag = "files",
    params(Upload),
    request_body(content = inline(Binary), content_type = "application/octet-stream"),
    responses((status = 200, description = "The file is there", body = Envelope<Written>))
)]
async fn upload(
    Awake(sandbox): Awake,
    Parameters(Upload { path, mode }): Parameters<Upload>,
    request: Incoming,
) -> Answer<Written> {
    let (mode, owner) = (mode.as_deref().map(octal).transpose()?, owner(&sandbox));
    let write = FileRequest::Write { path: path.0.clone(), mode, exclusive: false, owner };
    let size = transfer::take(&sandbox, Request::File(write), request.into_body()).await?;
    Ok(success("file uploaded", Written { path: path.0, size }))
}

/// Reads a file.
///
/// A connection that breaks off has not given the whole of it.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/download", operation_id = "downloadFile", tag = "files",
    params(At),
    responses(
        (
            status = 200,
            description = "What is in the file",
            body = inline(Binary),
            content_type = "application/octet-stream"
        )
    )
)]
async fn download(
    Awake(sandbox): Awake,
    Parameters(At { path }): Parameters<At>,
) -> Result<Response, Problem> {
    let (info, source) = sandbox.read_file(path.0).await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, transfer::give_file(sandbox, source, info.size).await?).into_response())
}

/// Reads a file, or a directory with what is in it, as a tar stream.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/archive", operation_id = "packFiles", tag = "files",
    params(Pack),
    responses(
        (
            status = 200,
            description = "A tar stream",
            body = inline(Binary),
            content_type = "application/x-tar"
        )
    )
)]
async fn pack(
    Awake(sandbox): Awake,
    Parameters(Pack { path, follow }): Parameters<Pack>,
) -> Result<Response, Problem> {
    let source = sandbox.pack(path.0, follow).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], transfer::give(sandbox, Vec::new(), source, None))
        .into_response())
}

/// Unpacks a tar stream beneath a directory.
#[utoipa::path(
    put, path = "/sandboxes/{id}/files/archive", operation_id = "unpackFiles", tag = "files",
    params(At),
    request_body(content = inline(Binary), content_type = "application/x-tar"),
    responses((status = 200, description = "All of it is there", body = Envelope<Written>))
)]
async fn unpack(
    Awake(sandbox): Awake,
    Parameters(At { path }): Parameters<At>,
    request: Incoming,
) -> Answer<Written> {
    let owner = owner(&sandbox);
    let write = Request::Upload { path: path.0.clone(), owner };
    let size = transfer::take(&sandbox, write, request.into_body()).await?;
    Ok(success("archive unpacked", Written { path: path.0, size }))
}

/// Whose what is made is: the commands', unless they say otherwise.
fn owner(sandbox: &Sandbox) -> Option<String> {
    Some(sandbox.view().record.config.user).filter(|user| !user.is_empty())
}

fn octal(mode: &str) -> Result<u32, Problem> {
    let digits = mode.strip_prefix("0o").unwrap_or(mode);
    let valid = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = || Problem::field("mode", format!("{mode:?} is not octal, from 0 to 7777"));
    valid.filter(|_| plain).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn modes() {
        for (text, mode) in [("755", 0o755), ("0o644", 0o644), ("0000", 0), ("7777", 0o7777)] {
            assert_eq!(octal(text).unwrap(), mode, "{text}");
        }
        for wrong in ["", "+7", "8", "u+x", "10000", "-1", "0x7"] {
            assert!(octal(wrong).is_err(), "{wrong}");
        }
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
