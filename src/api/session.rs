//! `exec` over a connection that is upgraded: after 101 the frames of [`protocol`] go both ways.
//!
//! The daemon sends Started first, then what the agent sends: Stdout and Stderr up to one Exit, or Error. The client sends Stdin,
//! StdinEnd, Resize and Signal. Each frame is decoded and made anew, so that neither side can break the other's stream. When
//! the client's direction ends, the command is ended. The command was started before the 101, so that why it was not is an
//! ordinary error. At the daemon's end the session ends with an Error.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use protocol::{Error as AgentError, ErrorCode, Frame, FrameType, Sender, Started, encode};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, ReadHalf};

use super::EXEC_PROTOCOL;
use super::exec::{SLACK, command};
use super::problem::Problem;
use super::types::Exec;
use crate::daemon::{Connection, Sandbox, chain, is_input};
use crate::sandbox::{Event, Exec as Running, ExecError, FrameReader, Input, StreamError};

/// A client has so long to take the last frame, where it tells of an error.
const LAST: Duration = Duration::from_secs(5);

/// The connection below the request, where the client asks for the frames.
pub(super) struct Upgrade(pub(super) Option<(OnUpgrade, Connection)>);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let wanted = parts.headers.get(header::UPGRADE);
        let wanted =
            wanted.is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(EXEC_PROTOCOL.as_bytes()));
        if !wanted {
            return Ok(Self(None));
        }
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        Ok(Self(upgrade.zip(parts.extensions.remove::<Connection>())))
    }
}

pub(super) async fn exec(
    sandbox: Arc<Sandbox>,
    (upgrade, connection): (OnUpgrade, Connection),
    body: Exec,
) -> Result<Response, Problem> {
    let (exec, deadline) = command(&sandbox, body, 0.0)?;
    let running = sandbox.exec(exec).await?;
    Ok(begin(sandbox, upgrade, connection, running, deadline))
}

/// `commands/attach`, the same way. The client that goes leaves the command to itself.
pub(super) async fn attach(
    sandbox: Arc<Sandbox>,
    (upgrade, connection): (OnUpgrade, Connection),
    pid: u32,
) -> Result<Response, Problem> {
    let running = sandbox.attach(pid).await?;
    Ok(begin(sandbox, upgrade, connection, running, None))
}

fn begin(
    sandbox: Arc<Sandbox>,
    upgrade: OnUpgrade,
    connection: Connection,
    running: Running,
    deadline: Option<Duration>,
) -> Response {
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => {
                if let Err(error) = session(&sandbox, stream, running, deadline, &connection).await {
                    tracing::debug!(sandbox = sandbox.id(), %error, "a session has broken off");
                }
            }
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(EXEC_PROTOCOL)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Returns when the command has ended, or the client has gone: then dropping the command ends it.
async fn session(
    sandbox: &Sandbox,
    stream: Upgraded,
    running: Running,
    deadline: Option<Duration>,
    connection: &Connection,
) -> Result<(), StreamError> {
    let (reader, mut writer) = tokio::io::split(TokioIo::new(stream));
    let Running { pid, mut input, mut output } = running;
    writer.write_all(&encode(&Started { pid })?).await?;
    // A frame is on its way to a client that has not taken the whole of it.
    let torn = AtomicBool::new(false);
    let pass_output = async {
        loop {
            let event = output.next_until_left().await;
            torn.store(true, Ordering::Relaxed);
            match event {
                Ok(Some(Event::Stdout(payload))) => send(&mut writer, FrameType::Stdout, &payload).await?,
                Ok(Some(Event::Stderr(payload))) => send(&mut writer, FrameType::Stderr, &payload).await?,
                Ok(Some(Event::Exit(exit))) => break writer.write_all(&encode(&exit)?).await?,
                // It was attached to, and left by the end of its input.
                Ok(None) => break,
                Err(error) => {
                    torn.store(false, Ordering::Relaxed);
                    return Ok(Some(error));
                }
            }
            torn.store(false, Ordering::Relaxed);
        }
        Ok::<_, StreamError>(None)
    };
    let overdue = async {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline.saturating_add(SLACK)).await,
            None => std::future::pending().await,
        }
    };
    let error = tokio::select! {
        biased;
        done = pass_output => match done? {
            None => return Ok(writer.shutdown().await?),
            Some(ExecError::Refused(error)) => error,
            Some(error) => failed(&chain(&sandbox.cause(error).await)),
        },
        gone = pass_input(connection, reader, &mut input) => return gone,
        () = overdue => failed("the guest has not ended the command, whose time was over"),
        () = connection.ended() => failed("the daemon is ending, and the command with it"),
    };
    let last = async {
        // In the middle of another frame it would be taken for output.
        if !torn.into_inner() {
            writer.write_all(&encode(&error)?).await?;
        }
        Ok(writer.shutdown().await?)
    };
    tokio::time::timeout(LAST, last).await.unwrap_or_else(|e| Err(StreamError::Io(e.into())))
}

fn failed(message: &str) -> AgentError {
    // A frame has room for so much.
    let end = message.floor_char_boundary(16 << 10);
    AgentError { code: ErrorCode::Internal, message: message[..end].to_owned(), errno: None }
}

async fn send(
    writer: &mut (impl AsyncWrite + Unpin),
    kind: FrameType,
    payload: &[u8],
) -> Result<(), StreamError> {
    let mut bytes = Vec::with_capacity(protocol::HEADER + payload.len());
    Frame { kind, payload }.encode(&mut bytes)?;
    Ok(writer.write_all(&bytes).await?)
}

/// Returns when the client has gone, or sends what it may not.
async fn pass_input(
    connection: &Connection,
    stream: ReadHalf<TokioIo<Upgraded>>,
    input: &mut Input,
) -> Result<(), StreamError> {
    let mut frames = FrameReader::new(stream, Sender::Host);
    loop {
        let frame = match frames.next().await {
            Ok(frame) => frame,
            Err(StreamError::End) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !is_input(frame.kind) {
            return Err(protocol::FrameError::WrongSide(frame.kind).into());
        }
        let pass = async {
            if input.frame(frame.kind, &frame.payload).await.is_err() {
                // The command takes nothing any more. Its end comes by the other direction.
                std::future::pending::<()>().await;
            }
        };
        if connection.while_there(pass).await.is_none() {
            return Ok(());
        }
    }
}
