//! The daemon as the command line sees it: a connection for each request, and a daemon that is started where there is none.

mod files;
mod release;
mod session;
mod start;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

pub(crate) use release::end_daemon;
pub(crate) use session::{Held, Remote};
pub(crate) use start::log_path;

use crate::config::Config;
use crate::socket::{Place, PlaceError};

/// The longest answer that is read whole, in bytes: a list of all sandboxes there can be.
const MAX_ANSWER: usize = 64 << 20;

/// What is sent with a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A daemon that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    place: Arc<Place>,
}

/// A request that has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("cannot connect to the daemon at {path}")]
    Connect { path: String, source: std::io::Error },
    #[error("the daemon could not be started: {reason} (its log is {log})")]
    Start { reason: String, log: String },
    #[error("cannot {action}")]
    Host { action: &'static str, source: std::io::Error },
    #[error("the daemon has ended")]
    Ended,
    #[error("the connection to the daemon has broken off")]
    Http(#[from] hyper::Error),
    /// The daemon has said no.
    #[error("{detail}")]
    Problem { status: StatusCode, kind: String, detail: String },
    #[error("the daemon's answer is not understood")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientError {
    /// What the daemon has refused, for programs; empty for anything else.
    pub(crate) fn kind(&self) -> &str {
        match self {
            Self::Problem { kind, .. } => kind,
            _ => "",
        }
    }
}

impl Client {
    /// The daemon of the store that `config` names. It is started where there is none.
    pub(crate) async fn connect(config: &Config) -> Result<Self, ClientError> {
        let place = start::ensure(config).await?;
        Ok(Self::at(place))
    }

    /// The daemon that listens there, if one does.
    fn at(place: Place) -> Self {
        Self { place: Arc::new(place) }
    }

    /// Asks for `path`, below `/v1`; returns the answer's `data`.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let mut answer = self.whole(method, path, body).await?;
        let data = answer.get_mut("data").map(Value::take).unwrap_or_default();
        serde_json::from_value(data).map_err(|e| ClientError::Answer(e.into()))
    }

    /// As [`Client::ask`], with what stands around `data`.
    pub(crate) async fn whole(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Value, ClientError> {
        let response = self.send(method, path, body, false).await?;
        let status = response.status();
        let bytes = read(response).await?;
        if status.is_success() {
            serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer(e.into()))
        } else {
            Err(problem(status, &bytes))
        }
    }

    /// What happens from now on to the sandboxes that have these labels, as `k=v,k2=v2`, or to one: lines of JSON.
    pub(crate) async fn events(&self, sandbox: Option<&str>, labels: &str) -> Result<Lines, ClientError> {
        let sandbox = sandbox.map(|key| format!("&sandbox={}", segment(key))).unwrap_or_default();
        self.lines(&format!("/events?labels={}{sandbox}", segment(labels))).await
    }

    /// An answer that comes line by line.
    async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, path, &(), false).await?;
        match response.status() {
            StatusCode::OK => Ok(Lines { body: response.into_body(), bytes: Vec::new(), end: 0 }),
            status => Err(problem(status, &read(response).await?)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        upgrade: bool,
    ) -> Result<Response<Incoming>, ClientError> {
        let json = serde_json::to_vec(body).map_err(|e| ClientError::Answer(e.into()))?;
        let json = if json == b"null" { Vec::new() } else { json };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v1{path}"))
            .header(header::HOST, "voidrun")
            .header(header::CONTENT_TYPE, "application/json");
        if upgrade {
            request = request
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, crate::api::EXEC_PROTOCOL);
        }
        let body = Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed_unsync();
        let request = request.body(body).map_err(|e| ClientError::Answer(e.into()))?;
        Ok(open(&self.place).await?.send_request(request).await?)
    }
}

/// An answer that comes line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    bytes: Vec<u8>,
    /// So many of the bytes are a line that was returned.
    end: usize,
}

impl Lines {
    /// The next line, without its end; none at the end of the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ClientError> {
        self.bytes.drain(..std::mem::take(&mut self.end));
        let mut searched = 0;
        loop {
            if let Some(length) = self.bytes[searched..].iter().position(|byte| *byte == b'\n') {
                let line = &self.bytes[..searched + length];
                self.end = line.len() + 1;
                return Ok(Some(String::from_utf8_lossy(line).into_owned()));
            }
            searched = self.bytes.len();
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => self.bytes.extend_from_slice(&frame?.into_data().unwrap_or_default()),
            }
        }
    }
}

/// A connection for one request.
async fn open(place: &Place) -> Result<SendRequest<Body>, ClientError> {
    let failed = |source| ClientError::Connect { path: place.path().display().to_string(), source };
    let stream = UnixStream::connect(place.address()).await.map_err(failed)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Its failure is that of the request.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn read(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(ClientError::Answer)?.to_bytes())
}

fn problem(status: StatusCode, body: &[u8]) -> ClientError {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |member: &str| problem[member].as_str().unwrap_or_default();
    let detail = match text("detail") {
        "" => format!("the daemon has answered {status}"),
        detail => detail.to_owned(),
    };
    let kind = text("type").trim_start_matches("urn:voidrun:problem:").to_owned();
    ClientError::Problem { status, kind, detail }
}

/// A part of a path, with what would be taken for something else escaped.
pub(crate) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments() {
        assert_eq!(segment("a-1"), "a-1");
        assert_eq!(segment("../ä?"), "..%2F%C3%A4%3F");
    }

    #[test]
    fn problems() {
        let error = problem(
            StatusCode::CONFLICT,
            br#"{"type": "urn:voidrun:problem:wrongState", "detail": "cannot stop the sandbox x: it is stopped"}"#,
        );
        assert_eq!(
            (error.kind(), &*error.to_string()),
            ("wrongState", "cannot stop the sandbox x: it is stopped")
        );
        assert!(problem(StatusCode::BAD_GATEWAY, b"<html>").to_string().contains("502"));
    }
}
