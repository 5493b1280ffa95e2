//! `logs`: what the job of a sandbox has written, as NDJSON, and what it writes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body as Answer;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::input::{Parameters, Target};
use super::problem::Problem;
use super::stream::PIECES;
use super::types::{End, LogParameters};
use crate::daemon::{Line, Reader, Sandbox, Stream};

/// So much is read at once, in bytes.
const BATCH: usize = 64 << 10;

/// Tells what the job of a sandbox has written, and what it writes.
///
/// Each line is `{"time", "stream", "data"}` with the data in base64. The last one of those that follow is an `End` with
/// `"stream": "exit"`.
#[utoipa::path(
    get, path = "/sandboxes/{id}/logs", operation_id = "readLogs", tag = "sandboxes",
    params(LogParameters),
    responses((status = 200, description = "Lines", body = String, content_type = "application/x-ndjson"))
)]
pub(super) async fn logs(
    Target(sandbox): Target,
    Parameters(LogParameters { follow, tail }): Parameters<LogParameters>,
) -> Result<Response, Problem> {
    let (reader, more) = sandbox.log().await?;
    let follow = follow.unwrap_or_default();
    let (sender, receiver) = channel(PIECES);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            result = pass(&sandbox, reader, more, follow, tail, &sender) => {
                if let Err(error) = result {
                    tracing::warn!(sandbox = sandbox.id(), %error, "its log cannot be read");
                    let line = json!({ "stream": "error", "message": format!("the log cannot be read: {error}") });
                    let _ = sender.send(format!("{line}\n")).await;
                }
            }
        }
    });
    let body = ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>);
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Answer::from_stream(body)).into_response())
}

async fn pass(
    sandbox: &Arc<Sandbox>,
    mut reader: Reader,
    mut more: tokio::sync::watch::Receiver<()>,
    follow: bool,
    tail: Option<usize>,
    sender: &Sender<String>,
) -> io::Result<()> {
    let mut tail = tail;
    loop {
        more.borrow_and_update();
        // Before the log is read: what comes in between is not missed.
        let runs = sandbox.job_runs();
        let (read, text) = tokio::task::spawn_blocking(move || {
            let text = batch(&mut reader, tail)?;
            Ok::<_, io::Error>((reader, text))
        })
        .await??;
        (reader, tail) = (read, None);
        if text.is_empty() {
            if !follow || !runs {
                break;
            }
            // The sandbox that holds the other side is ours.
            let _ = more.changed().await;
        } else if sender.send(text).await.is_err() {
            return Ok(());
        }
    }
    if follow && let Some(exit) = sandbox.view().record.job.and_then(|job| job.exit) {
        let mut end = json!(End::from(exit));
        end["stream"] = "exit".into();
        let _ = sender.send(format!("{end}\n")).await;
    }
    Ok(())
}

/// Some lines; nothing where there are no more. The last of all, where `tail` says how many.
fn batch(reader: &mut Reader, tail: Option<usize>) -> io::Result<String> {
    let mut text = String::new();
    if let Some(count) = tail {
        for line in reader.tail(count)? {
            text += &shown(&line);
        }
        return Ok(text);
    }
    while text.len() < BATCH
        && let Some(line) = reader.next()?
    {
        text += &shown(&line);
    }
    Ok(text)
}

fn shown(line: &Line) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(line.time_ms);
    let time = humantime::format_rfc3339_millis(time).to_string();
    let stream = if line.stream == Stream::Stderr { "stderr" } else { "stdout" };
    format!("{}\n", json!({ "time": time, "stream": stream, "data": BASE64_STANDARD.encode(line.bytes()) }))
}
