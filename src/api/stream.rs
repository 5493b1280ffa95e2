//! `exec-stream` and `commands/attach`: output while it comes, as server-sent events or, asked for by `Accept`, as NDJSON.
//!
//! The published client loses white space at the ends of lines and bytes that are not UTF-8 on the way through events; NDJSON
//! carries base64.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as Answer;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

use super::answers::ServerSentEvent;
use super::exec::{SLACK, TIMEOUT, command, overdue};
use super::input::{Awake, Body};
use super::problem::Problem;
use super::session::{self, Upgrade};
use super::text::{Text, event};
use super::types::{CodeEnd, End, Exec, Pid};
use crate::code::Transcript;
use crate::daemon::Sandbox;
use crate::sandbox::{Event, Exec as Running, Output};

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";
/// Pieces of output on their way to a client, of at most 64 KiB each: one that reads slowly stalls its own command.
pub(super) const PIECES: usize = 2;

/// Runs a command and tells its output as it comes.
///
/// The events are `stdout`, `stderr`, `exit` with an `End`, and `error` with a problem document. `Accept: application/x-ndjson` gets
/// lines instead, which lose nothing: a `Piece` each, and at the end the `End` with `"stream": "exit"` or a problem document with
/// `"stream": "error"`. A client that goes away
/// ends the command.
#[utoipa::path(
    post, path = "/sandboxes/{id}/exec-stream", operation_id = "execStream", tag = "commands",
    request_body = Exec,
    responses(
        (
            status = 200,
            description = "Its output and its end",
            content((ServerSentEvent = "text/event-stream"), (String = "application/x-ndjson"))
        )
    )
)]
pub(super) async fn exec(
    Awake(sandbox): Awake,
    headers: HeaderMap,
    Body(body): Body<Exec>,
) -> Result<Response, Problem> {
    if body.tty.is_some() || body.stdin == Some(true) {
        let field = if body.tty.is_some() { "tty" } else { "stdin" };
        return Err(Problem::field(field, "needs `exec` with a connection that is upgraded to voidrun-exec"));
    }
    let (exec, deadline) = command(&sandbox, body, TIMEOUT)?;
    let running = sandbox.exec(exec).await?;
    Ok(answer(sandbox, running, deadline, Format::of(&headers), None))
}

/// Tells the output of a command in the background, the last MiB first.
///
/// The answer is as that of `exec-stream`. The command goes on when the client goes.
#[utoipa::path(
    post, path = "/sandboxes/{id}/commands/attach", operation_id = "attachCommand", tag = "commands",
    request_body = Pid,
    responses(
        (
            status = 200,
            description = "Its output and its end",
            content((ServerSentEvent = "text/event-stream"), (String = "application/x-ndjson"))
        ),
        (status = 101, description = "The connection speaks the frames, as that of `exec`")
    )
)]
pub(super) async fn attach(
    Awake(sandbox): Awake,
    headers: HeaderMap,
    Upgrade(upgrade): Upgrade,
    Body(body): Body<Pid>,
) -> Result<Response, Problem> {
    if let Some(upgrade) = upgrade {
        return session::attach(sandbox, upgrade, body.pid).await;
    }
    let running = sandbox.attach(body.pid).await?;
    Ok(answer(sandbox, running, None, Format::of(&headers), None))
}

/// A line of a stream of lines.
#[derive(Serialize, ToSchema)]
pub(super) struct Piece<'a> {
    /// `stdout` or `stderr`.
    stream: &'a str,
    /// Base64.
    data: String,
}

/// The last of the lines.
#[derive(Serialize)]
struct Last<'a, T> {
    stream: &'static str,
    #[serde(flatten)]
    end: &'a T,
}

/// How output is written.
#[derive(Debug)]
pub(super) enum Format {
    /// What the characters of each output are cut at.
    Events {
        stdout: Text,
        stderr: Text,
    },
    Lines,
}

impl Format {
    fn of(headers: &HeaderMap) -> Self {
        Self::asked(headers).unwrap_or_else(Self::events)
    }

    /// The one that a client asks for, where it does.
    pub(super) fn asked(headers: &HeaderMap) -> Option<Self> {
        let accepts = |kind| {
            let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
            accepted.flat_map(|value| value.split(',')).any(|value| value.trim().starts_with(kind))
        };
        if accepts(LINES) {
            return Some(Self::Lines);
        }
        accepts(EVENTS).then(Self::events)
    }

    pub(super) fn content_type(&self) -> &'static str {
        if matches!(self, Self::Lines) { LINES } else { EVENTS }
    }

    fn events() -> Self {
        Self::Events { stdout: Text::default(), stderr: Text::default() }
    }

    /// A piece of an output; none where no character is whole yet.
    pub(super) fn output(&mut self, name: &str, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Lines => {
                Some(format!("{}\n", text(&Piece { stream: name, data: BASE64_STANDARD.encode(bytes) })))
            }
            Self::Events { stdout, stderr } => {
                let text = if name == "stdout" { stdout.push(bytes) } else { stderr.push(bytes) };
                (!text.is_empty()).then(|| event(name, &text))
            }
        }
    }

    /// What is left of the outputs, and the end.
    pub(super) fn exit(&mut self, end: &impl Serialize) -> String {
        match self {
            Self::Lines => format!("{}\n", text(&Last { stream: "exit", end })),
            Self::Events { stdout, stderr } => {
                let rests = [("stdout", stdout.end()), ("stderr", stderr.end())];
                let rests = rests.into_iter().filter_map(|(name, rest)| Some(event(name, &rest?)));
                rests.chain([event("exit", &text(end))]).collect()
            }
        }
    }

    /// A problem document, as the whole answer would have been.
    pub(super) fn error(&self, problem: &Problem) -> String {
        let document = problem.document();
        match self {
            Self::Lines => format!("{}\n", text(&Last { stream: "error", end: &document })),
            Self::Events { .. } => event("error", &text(&document)),
        }
    }
}

/// JSON. Not by way of a `Value`, which would put the members of a result in another order.
fn text(value: &impl Serialize) -> String {
    // Nothing in what ends a stream is what JSON cannot say.
    serde_json::to_string(value).unwrap_or_default()
}

/// `code`, where the command is an interpreter: its input.
pub(super) fn answer(
    sandbox: Arc<Sandbox>,
    running: Running,
    deadline: Option<Duration>,
    mut format: Format,
    code: Option<String>,
) -> Response {
    let kind = format.content_type();
    let (sender, receiver) = channel(PIECES);
    tokio::spawn(async move {
        let Running { input, output, .. } = running;
        let transcript = code.as_ref().map(|_| Transcript::new(0));
        let feed = async {
            match &code {
                Some(code) => input.feed(code.as_bytes()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            // Dropped, the command is ended.
            () = sender.closed() => {}
            () = pass(&sandbox, output, deadline, &mut format, &sender, transcript) => {}
            never = feed => match never {},
        }
    });
    let body = ReceiverStream::new(receiver).map(Ok::<Bytes, std::convert::Infallible>);
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
    (headers, Answer::from_stream(body)).into_response()
}

async fn pass(
    sandbox: &Sandbox,
    mut output: Output,
    deadline: Option<Duration>,
    format: &mut Format,
    sender: &Sender<Bytes>,
    mut transcript: Option<Transcript>,
) {
    let end = deadline.map(|deadline| tokio::time::Instant::now() + deadline.saturating_add(SLACK));
    loop {
        let next = async {
            match end {
                Some(end) => tokio::time::timeout_at(end, output.next()).await.ok(),
                None => Some(output.next().await),
            }
        };
        let next = next.await;
        if let (Some(transcript), Some(Ok(event))) = (&mut transcript, &next) {
            transcript.push(event);
        }
        let (piece, last) = match next {
            Some(Ok(Event::Stdout(bytes))) => (format.output("stdout", &bytes), false),
            Some(Ok(Event::Stderr(bytes))) => (format.output("stderr", &bytes), false),
            Some(Ok(Event::Exit(exit))) => {
                let exit = match &transcript {
                    Some(transcript) => format.exit(&CodeEnd::new(exit, transcript)),
                    None => format.exit(&End::from(exit)),
                };
                (Some(exit), true)
            }
            Some(Err(error)) => (Some(format.error(&sandbox.cause(error).await.into())), true),
            None => {
                // The command is over, also for a client that reads nothing.
                drop(output);
                let error = format.error(&overdue(deadline.unwrap_or_default()));
                let _ = tokio::time::timeout(SLACK, sender.send(error.into())).await;
                return;
            }
        };
        let gone = match piece {
            Some(piece) => sender.send(piece.into()).await.is_err(),
            None => false,
        };
        if gone || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn accepting(value: &'static str) -> Format {
        Format::of(&HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]))
    }

    #[test]
    fn both_formats() {
        let end = End { exit_code: 3, duration_ms: 5, ..End::default() };
        let mut format = accepting("text/event-stream");
        assert_eq!(format.output("stdout", b"a\xe2\x82").unwrap(), "event:stdout\ndata:a\n\n");
        assert_eq!(format.output("stderr", b"\xe2"), None);
        assert_eq!(format.output("stdout", b"\xac\n").unwrap(), "event:stdout\ndata:€\ndata:\n\n");
        assert_eq!(
            format.exit(&end),
            "event:stderr\ndata:\u{fffd}\n\nevent:exit\ndata:{\"exitCode\":3,\"durationMs\":5}\n\n"
        );
        let problem = Problem::field("x", "no");
        assert_eq!(format.error(&problem), format!("event:error\ndata:{}\n\n", text(&problem.document())));

        let mut format = accepting("text/plain, application/x-ndjson; q=1");
        assert_eq!(
            format.output("stdout", b"\xff\n").unwrap(),
            "{\"stream\":\"stdout\",\"data\":\"/wo=\"}\n"
        );
        assert_eq!(format.exit(&end), "{\"stream\":\"exit\",\"exitCode\":3,\"durationMs\":5}\n");
        let error: serde_json::Value = serde_json::from_str(&format.error(&problem)).unwrap();
        assert_eq!(
            (&error["stream"], &error["status"], &error["detail"]),
            (&json!("error"), &json!(422), &json!("x: no"))
        );
    }
}
