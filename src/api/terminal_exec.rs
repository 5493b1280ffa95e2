//! `session-exec` and `session-exec-stream`: commands that are typed at a session of [`super::terminal`], with their output and
//! their exit code. The sessions are the same, and the session's shell is one that knows `eval` and `printf`, as all POSIX shells do.

use std::time::Duration;

use axum::Json;
use axum::body::Body as Answer;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc::channel;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

use super::answers::{ServerSentEvent, SessionExecuted};
use super::exec::MAX_OUTPUT;
use super::input::{Awake, Body};
use super::problem::Problem;
use super::stream::{Format, PIECES};
use super::terminal::{Size, check_input, shell};
use super::typed::Typed;
use super::types::End;
use crate::daemon::{Sandbox, Terminal};
use crate::sandbox::{Event, Exec};

/// The wire knows no deadline; an answer without a stream comes within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// An action at a terminal.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionExec {
    action: Action,
    /// Of all but `create`.
    session_id: Option<String>,
    /// For `create`: a program; the image's shell where it is absent.
    shell: Option<String>,
    /// For `exec`.
    command: Option<String>,
    /// For `input`.
    input: Option<String>,
    /// For `create` and `resize`.
    #[schema(minimum = 1, maximum = 500)]
    cols: Option<u16>,
    /// For `create` and `resize`.
    #[schema(minimum = 1, maximum = 200)]
    rows: Option<u16>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Action {
    Create,
    Exec,
    Input,
    Resize,
    Close,
}

/// A command for a terminal.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionExecStream {
    session_id: String,
    command: String,
}

/// Does something at a terminal: makes one, types a command and waits for its end, types, resizes, ends it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/session-exec", operation_id = "sessionExec", tag = "terminals",
    request_body = SessionExec,
    responses(
        (
            status = 200,
            description = "It is done; a command that has not ended within 30 s goes on",
            body = SessionExecuted
        )
    )
)]
pub(super) async fn exec(
    Awake(sandbox): Awake,
    Body(body): Body<SessionExec>,
) -> Result<Json<SessionExecuted>, Problem> {
    let done = |session_id| {
        Json(SessionExecuted { success: true, session_id, output: None, exit_code: None, error: None })
    };
    let missing = |field: &str| Problem::field(field, "is missing, which this action needs");
    let size = Size { cols: body.cols, rows: body.rows };
    if matches!(body.action, Action::Create) {
        let terminal = sandbox.open_terminal(shell(&sandbox, size, body.shell)?).await?;
        return Ok(done(terminal.id()));
    }
    let id = body.session_id.ok_or_else(|| missing("sessionId"))?;
    let terminal = sandbox.terminal(&id).await?;
    match body.action {
        Action::Create => {}
        Action::Exec => {
            let command = body.command.ok_or_else(|| missing("command"))?;
            return run(&sandbox, &terminal, &command).await;
        }
        Action::Input => {
            let input = body.input.ok_or_else(|| missing("input"))?;
            check_input("input", &input)?;
            sandbox.type_in(&terminal, &input).await?;
        }
        Action::Resize => {
            size.cols.ok_or_else(|| missing("cols"))?;
            size.rows.ok_or_else(|| missing("rows"))?;
            sandbox.resize_terminal(&terminal, size.try_into()?).await?;
        }
        Action::Close => sandbox.close_terminal(&terminal).await?,
    }
    Ok(done(id))
}

async fn run(
    sandbox: &Sandbox,
    terminal: &Terminal,
    command: &str,
) -> Result<Json<SessionExecuted>, Problem> {
    let mut running = Running::start(sandbox, terminal, command).await?;
    let mut printed = Vec::new();
    let read = async {
        loop {
            let (piece, code) = running.next(sandbox).await?;
            printed.extend_from_slice(&piece[..piece.len().min(MAX_OUTPUT - printed.len())]);
            if let Some(code) = code {
                return Ok::<i32, Problem>(code);
            }
        }
    };
    let code = tokio::time::timeout(PATIENCE, read).await;
    let exit_code = code.ok().transpose()?;
    let error = exit_code.is_none().then(|| {
        let seconds = PATIENCE.as_secs();
        format!("the command has not ended within {seconds} s and goes on; session-exec-stream waits")
    });
    let output = Some(String::from_utf8_lossy(&printed).into_owned());
    let (success, session_id) = (exit_code == Some(0), terminal.id());
    Ok(Json(SessionExecuted { success, session_id, output, exit_code, error }))
}

/// Types a command at a terminal and tells what it prints as it comes.
///
/// The answer is as that of `exec-stream`, as lines where nothing is asked for. The command goes on when the client goes.
#[utoipa::path(
    post, path = "/sandboxes/{id}/session-exec-stream", operation_id = "sessionExecStream", tag = "terminals",
    request_body = SessionExecStream,
    responses(
        (
            status = 200,
            description = "What it prints, and its end",
            content((String = "application/x-ndjson"), (ServerSentEvent = "text/event-stream"))
        )
    )
)]
pub(super) async fn stream(
    Awake(sandbox): Awake,
    headers: HeaderMap,
    Body(body): Body<SessionExecStream>,
) -> Result<Response, Problem> {
    let terminal = sandbox.terminal(&body.session_id).await?;
    let mut running = Running::start(&sandbox, &terminal, &body.command).await?;
    let mut format = Format::asked(&headers).unwrap_or(Format::Lines);
    let kind = format.content_type();
    let (sender, receiver) = channel(PIECES);
    tokio::spawn(async move {
        let pass = async {
            loop {
                let (piece, last) = match running.next(&sandbox).await {
                    Ok((printed, None)) => (output(&mut format, &printed), false),
                    Ok((printed, Some(exit_code))) => {
                        let mut piece = output(&mut format, &printed).unwrap_or_default();
                        piece += &format.exit(&End { exit_code, ..End::default() });
                        (Some(piece), true)
                    }
                    Err(problem) => (Some(format.error(&problem)), true),
                };
                let gone = match piece {
                    Some(piece) => sender.send(Bytes::from(piece)).await.is_err(),
                    None => false,
                };
                if gone || last {
                    return;
                }
            }
        };
        tokio::select! {
            () = sender.closed() => {}
            () = pass => {}
        }
    });
    let body = ReceiverStream::new(receiver).map(Ok::<Bytes, std::convert::Infallible>);
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Answer::from_stream(body)).into_response())
}

fn output(format: &mut Format, printed: &[u8]) -> Option<String> {
    if printed.is_empty() { None } else { format.output("stdout", printed) }
}

/// A command that was typed.
struct Running {
    attached: Exec,
    typed: Typed,
}

impl Running {
    async fn start(sandbox: &Sandbox, terminal: &Terminal, command: &str) -> Result<Self, Problem> {
        let mut nonce = [0; size_of::<u64>()];
        // So few bytes come whole or not at all (getrandom(2)).
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).map_err(|e| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", format!("random numbers: {e}"))
        })?;
        let typed = Typed::new(u64::from_ne_bytes(nonce));
        let keys = typed.keys(command)?;
        // So few go on their way though the terminal takes none and nobody reads what it shows yet.
        check_input("command", &keys)?;
        let mut attached = sandbox.attach_terminal(terminal).await?;
        if let Err(error) = attached.input.write(keys.as_bytes()).await {
            return Err(sandbox.cause(error).await.into());
        }
        Ok(Self { attached, typed })
    }

    /// What comes next of what it prints, and its exit code when it has ended.
    async fn next(&mut self, sandbox: &Sandbox) -> Result<(Vec<u8>, Option<i32>), Problem> {
        match self.attached.output.next().await {
            Ok(Event::Stdout(shown) | Event::Stderr(shown)) => {
                let (printed, code) = self.typed.push(&shown);
                Ok((printed, code.map(i32::from)))
            }
            // The shell itself has ended.
            Ok(Event::Exit(exit)) => Ok((Vec::new(), Some(End::from(exit).exit_code))),
            Err(error) => Err(sandbox.cause(error).await.into()),
        }
    }
}
