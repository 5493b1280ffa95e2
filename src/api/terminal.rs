//! `pty`: terminals. That of `GET .../pty` ends with its connection; the sessions of `.../pty/sessions` go on in the guest until
//! their shell ends or they are deleted, whatever becomes of connections and daemon.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::response::Response;
use protocol::WindowSize;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::exec::command;
use super::input::{Body, Parameters, Target};
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

type Answer = Result<Json<Value>, Problem>;

/// `POST .../pty/sessions` and the parameters of `GET .../pty`: in characters, 80 by 24 where nothing is said.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Size {
    pub(super) cols: Option<u16>,
    pub(super) rows: Option<u16>,
}

/// `POST .../resize`
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Resize {
    cols: u16,
    rows: u16,
}

/// `POST .../execute`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Execute {
    command: String,
}

/// A session in a list.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    id: String,
    created_at: String,
    clients: u32,
    /// It is not listed when it has ended.
    alive: bool,
}

/// The sandbox and the session of a path.
pub(super) struct Place(pub(super) Arc<Sandbox>, pub(super) Terminal);

impl FromRequestParts<Arc<Daemon>> for Place {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, daemon: &Arc<Daemon>) -> Result<Self, Problem> {
        let path = Path::<(String, String)>::from_request_parts(parts, daemon).await;
        let Path((key, id)) = path.map_err(|e| Problem::bad_request(e.body_text()))?;
        let sandbox = daemon.find(&key)?;
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

pub(super) async fn ephemeral(
    Target(sandbox): Target,
    Parameters(size): Parameters<Size>,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    let running = sandbox.exec(shell(&sandbox, size, None)?).await?;
    Ok(upgrade.with(sandbox, running))
}

pub(super) async fn create(Target(sandbox): Target, Body(size): Body<Size>) -> Answer {
    let terminal = sandbox.open_terminal(shell(&sandbox, size, None)?).await?;
    let data = json!({ "sessionId": terminal.id(), "createdAt": time(terminal.started_ms) });
    Ok(success("terminal created", data))
}

pub(super) async fn list(Target(sandbox): Target) -> Answer {
    let sessions = sandbox.terminals().await?.into_iter().map(|terminal| Session {
        id: terminal.id(),
        created_at: time(terminal.started_ms),
        clients: terminal.clients,
        alive: true,
    });
    let sessions: Vec<Session> = sessions.collect();
    Ok(success("terminals", json!({ "sessions": sessions })))
}

pub(super) async fn connect(Place(sandbox, terminal): Place, upgrade: Upgrade) -> Result<Response, Problem> {
    let attached = sandbox.attach_terminal(&terminal).await?;
    Ok(upgrade.with(sandbox, attached))
}

pub(super) async fn delete(Place(sandbox, terminal): Place) -> Answer {
    sandbox.close_terminal(&terminal).await?;
    Ok(success("terminal ended", json!({ "sessionId": terminal.id() })))
}

pub(super) async fn resize(
    Place(sandbox, terminal): Place,
    Body(Resize { cols, rows }): Body<Resize>,
) -> Answer {
    let size = WindowSize::try_from(Size { cols: Some(cols), rows: Some(rows) })?;
    sandbox.resize_terminal(&terminal, size).await?;
    Ok(success("terminal resized", json!({ "cols": cols, "rows": rows })))
}

pub(super) async fn buffer(Place(sandbox, terminal): Place) -> Answer {
    let shown = sandbox.shown(&terminal).await?;
    Ok(success("terminal's output", json!({ "output": String::from_utf8_lossy(&shown) })))
}

/// Does not wait for the command's end.
pub(super) async fn execute(
    Place(sandbox, terminal): Place,
    Body(Execute { command }): Body<Execute>,
) -> Answer {
    check_input("command", &command)?;
    let line = if command.ends_with('\n') { command } else { command + "\n" };
    sandbox.type_in(&terminal, &line).await?;
    Ok(success("command typed", json!({ "sessionId": terminal.id() })))
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
            assert!(problem.document()["detail"].as_str().unwrap().starts_with(field), "{problem:?}");
        }
    }
}
