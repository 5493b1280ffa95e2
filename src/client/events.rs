//! What happens to the sandboxes of the daemon.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};

use super::{Client, ClientError, problem, read, segment};

/// Events from when it was made on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    /// What has come behind the last whole line.
    rest: Vec<u8>,
}

impl Client {
    /// Of all sandboxes that have these labels, as `k=v,k2=v2`, or of one.
    pub(crate) async fn events(&self, sandbox: Option<&str>, labels: &str) -> Result<Events, ClientError> {
        let sandbox = sandbox.map(|key| format!("&sandbox={}", segment(key))).unwrap_or_default();
        let path = format!("/events?labels={}{sandbox}", segment(labels));
        let response = self.send(Method::GET, &path, &(), false).await?;
        match response.status() {
            StatusCode::OK => Ok(Events { body: response.into_body(), rest: Vec::new() }),
            status => Err(problem(status, &read(response).await?)),
        }
    }
}

impl Events {
    /// The next one, as JSON.
    pub(crate) async fn next(&mut self) -> Result<String, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return String::from_utf8(line).map_err(|e| ClientError::Answer(e.into()));
            }
            let frame = self.body.frame().await.ok_or(ClientError::Ended)??;
            // An answer of lines has no trailers.
            self.rest.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }
}
