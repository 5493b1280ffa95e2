//! `pty`: terminals. That of `GET .../pty` ends with its connection; the sessions of `.../pty/sessions` go on in the guest until
//! their shell ends or they are deleted, whatever becomes of connections and daemon.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::response::Response;
use protocol::WindowSize;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answers::{Envelope, NewSession, Session, SessionId, Sessions, Shown};
use super::exec::command;
use super::input::{Awake, Body, Parameters};
use super::problem::Problem;
use super::success;
use super::types::{Exec, time};
use super::websocket::Upgrade;
use crate::daemon::{Daemon, Sandbox, Terminal};

/// The image's best shell; that of its agent is one of the two.
const SHELL: &str = r#"exec "${BASH:-/bin/sh}""#;
const MAX_COLS: u16 = 500;
const MAX_ROWS: u16 = 200;
/// What may be typed at once, in bytes: a terminal that nobody reads takes 4 KiB of it.
const MAX_INPUT: usize = 64 << 10;

type Answer<T> = Result<Json<Envelope<T>>, Problem>;

/// The size of a new terminal.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct Size {
    /// Columns; 80 where it is absent.
    #[schema(minimum = 1, maximum = 500)]
    #[param(minimum = 1, maximum = 500)]
    pub(super) cols: Option<u16>,
    /// Lines; 24 where it is absent.
    #[schema(minimum = 1, maximum = 200)]
    #[param(minimum = 1, maximum = 200)]
    pub(super) rows: Option<u16>,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Resize {
    /// Columns.
    #[schema(minimum = 1, maximum = 500)]
    cols: u16,
    /// Lines.
    #[schema(minimum = 1, maximum = 200)]
    rows: u16,
}

/// What is to be typed.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(super) struct Execute {
    /// A line, of at most 64 KiB.
    command: String,
}

/// The sandbox and the session of a path.
pub(super) struct Place(pub(super) Arc<Sandbox>, pub(super) Terminal);

impl FromRequestParts<Arc<Daemon>> for Place {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, daemon: &Arc<Daemon>) -> Result<Self, Problem> {
        let path = Path::<(String, String)>::from_request_parts(parts, daemon).await;
        let Path((key, id)) = path.map_err(|e| Problem::bad_request(e.body_text()))?;
        let sandbox = daemon.find(&key)?;
        daemon.awake(&sandbox).await?;
        let terminal = sandbox.terminal(&id).await?;
        Ok(Self(sandbox, terminal))
    }
}

impl TryFrom<Size> for WindowSize {
    type Error = Problem;

    fn try_from(Size { cols, rows }: Size) -> Result<Self, Problem> {
        let (cols, rows) = (cols.unwrap_or(80), rows.unwrap_or(24));
        for (field, value, max) in [("cols", cols, MAX_COLS), ("rows", rows, MAX_ROWS)] {
            if !(1..=max).contains(&value) {
                return Err(Problem::field(field, format!("{value} is not between 1 and {max}")));
            }
        }
        Ok(Self { rows, cols })
    }
}

/// The request for a shell, of the image's own where none is named.
pub(super) fn shell(
    sandbox: &Sandbox,
    size: Size,
    program: Option<String>,
) -> Result<protocol::Exec, Problem> {
    let tty = Some(WindowSize::try_from(size)?);
    let args = program.as_ref().map(|_| Vec::new());
    let command_line = program.unwrap_or_else(|| SHELL.to_owned());
    let wanted = Exec {
        command: command_line,
        args,
        cwd: None,
        env: None,
        user: None,
        timeout: None,
        tty,
        stdin: None,
    };
    Ok(command(sandbox, wanted, 0.0)?.0)
}

pub(super) fn check_input(field: &str, text: &str) -> Result<(), Problem> {
    if text.len() > MAX_INPUT {
        let wrong = format!("is {} bytes, where {MAX_INPUT} are allowed", text.len());
        return Err(Problem::field(field, wrong));
    }
    Ok(())
}

/// Opens a terminal with a shell, by WebSocket. The shell ends with the connection.
#[utoipa::path(
    get, path = "/sandboxes/{id}/pty", operation_id = "openTerminal", tag = "terminals",
    params(Size),
    responses((status = 101, description = "Raw bytes both ways; closed with 1000 when the shell has ended"))
)]
pub(super) async fn ephemeral(
    Awake(sandbox): Awake,
    Parameters(size): Parameters<Size>,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    let running = sandbox.exec(shell(&sandbox, size, None)?).await?;
    Ok(upgrade.with(sandbox, running))
}

/// Makes a terminal that goes on without connections.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pty/sessions", operation_id = "createTerminal", tag = "terminals",
    request_body = Size,
    responses((status = 200, description = "Its shell runs", body = Envelope<NewSession>))
)]
pub(super) async fn create(Awake(sandbox): Awake, Body(size): Body<Size>) -> Answer<NewSession> {
    let terminal = sandbox.open_terminal(shell(&sandbox, size, None)?).await?;
    let data = NewSession { session_id: terminal.id(), created_at: time(terminal.started_ms) };
    Ok(success("terminal created", data))
}

/// Lists terminals.
#[utoipa::path(
    get, path = "/sandboxes/{id}/pty/sessions", operation_id = "listTerminals", tag = "terminals",
    responses((status = 200, description = "Those whose shell runs", body = Envelope<Sessions>))
)]
pub(super) async fn list(Awake(sandbox): Awake) -> Answer<Sessions> {
    let sessions = sandbox.terminals().await?.into_iter().map(|terminal| Session {
        id: terminal.id(),
        created_at: time(terminal.started_ms),
        clients: terminal.clients,
        alive: true,
    });
    Ok(success("terminals", Sessions { sessions: sessions.collect() }))
}

/// Connects with a terminal, by WebSocket. It goes on without the connection.
#[utoipa::path(
    get, path = "/sandboxes/{id}/pty/sessions/{session}", operation_id = "connectTerminal", tag = "terminals",
    responses(
        (
            status = 101,
            description = "Raw bytes both ways, the last MiB first; closed with 1000 when the shell has ended"
        )
    )
)]
pub(super) async fn connect(Place(sandbox, terminal): Place, upgrade: Upgrade) -> Result<Response, Problem> {
    let attached = sandbox.attach_terminal(&terminal).await?;
    Ok(upgrade.with(sandbox, attached))
}

/// Ends a terminal and its shell.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/pty/sessions/{session}", operation_id = "removeTerminal", tag = "terminals",
    responses((status = 200, description = "Its shell has ended", body = Envelope<SessionId>))
)]
pub(super) async fn delete(Place(sandbox, terminal): Place) -> Answer<SessionId> {
    sandbox.close_terminal(&terminal).await?;
    Ok(success("terminal ended", SessionId { session_id: terminal.id() }))
}

/// Gives a terminal another size.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pty/sessions/{session}/resize", operation_id = "resizeTerminal", tag = "terminals",
    request_body = Resize,
    responses((status = 200, description = "It has the size", body = Envelope<Resize>))
)]
pub(super) async fn resize(Place(sandbox, terminal): Place, Body(body): Body<Resize>) -> Answer<Resize> {
    let Resize { cols, rows } = body;
    let size = WindowSize::try_from(Size { cols: Some(cols), rows: Some(rows) })?;
    sandbox.resize_terminal(&terminal, size).await?;
    Ok(success("terminal resized", body))
}

/// Reads what a terminal has shown.
#[utoipa::path(
    get, path = "/sandboxes/{id}/pty/sessions/{session}/buffer", operation_id = "readTerminal", tag = "terminals",
    responses((status = 200, description = "The last MiB", body = Envelope<Shown>))
)]
pub(super) async fn buffer(Place(sandbox, terminal): Place) -> Answer<Shown> {
    let shown = sandbox.shown(&terminal).await?;
    Ok(success("terminal's output", Shown { output: String::from_utf8_lossy(&shown).into_owned() }))
}

/// Types a line at a terminal, and does not wait for what comes of it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pty/sessions/{session}/execute", operation_id = "typeInTerminal", tag = "terminals",
    request_body = Execute,
    responses((status = 200, description = "It is typed", body = Envelope<SessionId>))
)]
pub(super) async fn execute(
    Place(sandbox, terminal): Place,
    Body(Execute { command }): Body<Execute>,
) -> Answer<SessionId> {
    check_input("command", &command)?;
    let line = if command.ends_with('\n') { command } else { command + "\n" };
    sandbox.type_in(&terminal, &line).await?;
    Ok(success("command typed", SessionId { session_id: terminal.id() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let size = |cols, rows| WindowSize::try_from(Size { cols, rows });
        assert_eq!(size(None, None).unwrap(), WindowSize { cols: 80, rows: 24 });
        assert_eq!(size(Some(500), Some(200)).unwrap(), WindowSize { cols: 500, rows: 200 });
        for (cols, rows, field) in [(0, 24, "cols"), (501, 24, "cols"), (80, 0, "rows"), (80, 201, "rows")] {
            let problem = size(Some(cols), Some(rows)).unwrap_err();
            assert!(problem.document().detail.starts_with(field), "{problem:?}");
        }
    }
}
