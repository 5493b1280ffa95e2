//! What a client still sends when its request is answered already, as with an error: it is read, within bounds, and dropped.
//! A connection that ended at once would break the client off before it comes to read the answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, timeout, timeout_at};

/// In bytes.
const MOST: usize = 64 << 20;
const LONGEST: Duration = Duration::from_secs(10);
/// One that sends nothing for so long waits for the answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Whatever becomes of the request, its body is read.
pub(super) async fn body(request: Request) -> Request {
    request.map(|body| Body::new(Drained(body)))
}

struct Drained(Body);

impl HttpBody for Drained {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        if !self.0.is_end_stream() {
            let body = std::mem::take(&mut self.0);
            tokio::spawn(timeout_at(Instant::now() + LONGEST, drain(body)));
        }
    }
}

async fn drain(mut body: Body) {
    let mut length = 0;
    while let Ok(Some(Ok(frame))) = timeout(PAUSE, body.frame()).await {
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > MOST {
            return;
        }
    }
}
