//! Content on its way between a client and the guest. Neither side is read faster than the other takes it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use protocol::Request;
use tokio::sync::mpsc::channel;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::problem::Problem;
use crate::daemon::{Sandbox, chain};
use crate::sandbox::Source;

/// A file that is no longer is read before it is answered, in bytes.
const SMALL: usize = 64 << 10;
/// Pieces on their way to a client, of at most 64 KiB each.
pub(super) const PIECES: usize = 2;
/// A client that sends or takes nothing for so long has gone, and so has a guest.
pub(super) const IDLE: Duration = Duration::from_mins(5);

/// The body goes to the guest as `request` has it; returns how long it was, in bytes.
pub(super) async fn take(sandbox: &Sandbox, request: Request, mut body: Body) -> Result<u64, Problem> {
    let mut sink = sandbox.write(request).await?;
    let mut size = 0;
    loop {
        let frame = tokio::select! {
            frame = timeout(IDLE, body.frame()) => frame.map_err(|_| stalled("client"))?,
            refused = sink.refused() => match refused {
                Err(error) => return Err(sandbox.cause_of_files(error).await.into()),
            },
        };
        let Some(frame) = frame else { break };
        // Whoever has sent half of it gets no answer; what there is of it is dropped with the sink.
        let frame = frame.map_err(|_| Problem::bad_request("the body has broken off"))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len() as u64;
        match timeout(IDLE, sink.write(&data)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(sandbox.cause_of_files(error).await.into()),
            Err(_) => return Err(stalled("guest")),
        }
    }
    match timeout(IDLE, sink.finish()).await {
        Ok(Ok(())) => Ok(size),
        Ok(Err(error)) => Err(sandbox.cause_of_files(error).await.into()),
        Err(_) => Err(stalled("guest")),
    }
}

fn stalled(who: &str) -> Problem {
    let status = if who == "guest" { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
    let detail = format!("the {who} has neither sent nor taken anything for {} s", IDLE.as_secs());
    Problem::new(status, "timeout", detail)
}

/// A file that has `size` bytes, with the header that says how many come.
///
/// A small one is read first, and what was read is its length: what is in files of procfs and sysfs is not as long as their
/// size says. Of a larger one that becomes longer meanwhile, `size` bytes come.
pub(super) async fn give_file(
    sandbox: Arc<Sandbox>,
    mut source: Source,
    size: u64,
) -> Result<Response, Problem> {
    if size > SMALL as u64 {
        let length = [(header::CONTENT_LENGTH, size)];
        return Ok((length, give(sandbox, Vec::new(), source, Some(size))).into_response());
    }
    let mut content = Vec::new();
    while content.len() <= SMALL {
        match timeout(IDLE, source.next()).await {
            Ok(Ok(Some(piece))) => content.extend_from_slice(&piece),
            Ok(Ok(None)) => return Ok(content.into_response()),
            Ok(Err(error)) => return Err(sandbox.cause_of_files(error).await.into()),
            Err(_) => return Err(stalled("guest")),
        }
    }
    Ok(give(sandbox, content, source, None).into_response())
}

/// `begin`, and what comes from the guest behind it, as a body; `left` bytes where that is known. One that fails on the way
/// breaks the connection off: what has come is not the whole.
pub(super) fn give(sandbox: Arc<Sandbox>, begin: Vec<u8>, mut source: Source, mut left: Option<u64>) -> Body {
    let (sender, receiver) = channel::<io::Result<Bytes>>(PIECES);
    tokio::spawn(async move {
        if !begin.is_empty() && !matches!(timeout(IDLE, sender.send(Ok(begin.into()))).await, Ok(Ok(()))) {
            return;
        }
        while left != Some(0) {
            let next = tokio::select! {
                next = timeout(IDLE, source.next()) => next,
                () = sender.closed() => return,
            };
            let piece = match next {
                Ok(Ok(Some(piece))) => Ok(within(piece, &mut left).into()),
                Ok(Ok(None)) if left.is_none() => return,
                Ok(Ok(None)) => {
                    tracing::warn!(
                        sandbox = sandbox.id(),
                        "a file has become shorter while it was downloaded"
                    );
                    Err(io::ErrorKind::UnexpectedEof.into())
                }
                Ok(Err(error)) => {
                    let error = sandbox.cause_of_files(error).await;
                    // What the guest has said last is not for the log.
                    let why = chain(&error).lines().next().unwrap_or_default().to_owned();
                    tracing::warn!(sandbox = sandbox.id(), error = why, "a download has broken off");
                    Err(io::Error::other(error))
                }
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            let failed = piece.is_err();
            if !matches!(timeout(IDLE, sender.send(piece)).await, Ok(Ok(()))) || failed {
                return;
            }
        }
    });
    Body::from_stream(ReceiverStream::new(receiver))
}

/// No more of a piece than is left, and what is left behind it.
fn within(mut piece: Vec<u8>, left: &mut Option<u64>) -> Vec<u8> {
    if let Some(left) = left {
        piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= piece.len() as u64;
    }
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_was_said() {
        let mut left = Some(5);
        assert_eq!((within(vec![1; 3], &mut left), left), (vec![1; 3], Some(2)));
        assert_eq!((within(vec![1; 3], &mut left), left), (vec![1; 2], Some(0)));
        assert_eq!((within(vec![1; 3], &mut None), left), (vec![1; 3], Some(0)));
    }
}
