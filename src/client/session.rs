//! A command in a sandbox of the daemon: the frames of [`protocol`] over an upgraded connection.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use protocol::Sender;
use serde::Serialize;
use serde_json::Value;

use super::{Client, ClientError, Lines, problem, read, segment};
use crate::api::types;
use crate::sandbox::{Exec, FrameReader};

/// So long the end of a sandbox is waited for.
const GONE: Duration = Duration::from_secs(10);

/// A sandbox of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) client: Client,
    /// An id, a prefix of one, or a name.
    pub(crate) sandbox: String,
}

/// An ephemeral sandbox. It goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) remote: Remote,
    pub(crate) sandbox: types::Sandbox,
    /// Of the answer, which lasts for as long as the sandbox.
    rest: Incoming,
}

impl Client {
    /// Makes an ephemeral sandbox.
    pub(crate) async fn hold(&self, create: &types::Create) -> Result<Held, ClientError> {
        let response = self.send(Method::POST, "/sandboxes", create, false).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(problem(status, &read(response).await?));
        }
        let (mut rest, mut line) = (response.into_body(), Vec::new());
        while !line.ends_with(b"\n") {
            let frame = rest.frame().await.ok_or_else(|| ClientError::Answer("it is cut off".into()))??;
            line.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
        let wrong = |error: serde_json::Error| ClientError::Answer(error.into());
        let mut answer: Value = serde_json::from_slice(&line).map_err(wrong)?;
        let sandbox: types::Sandbox = serde_json::from_value(answer["data"].take()).map_err(wrong)?;
        Ok(Held { remote: Remote { client: self.clone(), sandbox: sandbox.id.clone() }, sandbox, rest })
    }
}

impl Held {
    /// Removes the sandbox; returns when nothing of it is left.
    pub(crate) async fn remove(mut self) -> Result<(), ClientError> {
        let gone = async {
            let path = format!("/sandboxes/{}", self.remote.sandbox);
            match self.remote.client.whole(Method::DELETE, &path, &()).await {
                // Somebody else was faster.
                Err(error) if error.kind() != "notFound" => return Err(error),
                _ => {}
            }
            while let Some(frame) = self.rest.frame().await {
                frame?;
            }
            Ok(())
        };
        // What takes longer goes on in the daemon.
        tokio::time::timeout(GONE, gone).await.unwrap_or(Ok(()))
    }
}

impl Remote {
    /// Starts a command. It is ended when its input is dropped.
    pub(crate) async fn exec(&self, exec: &types::Exec) -> Result<Exec, ClientError> {
        self.frames("exec", exec).await
    }

    /// The output of a command in the background, and at a terminal its input. It runs on when that is dropped.
    pub(crate) async fn attach(&self, pid: u32) -> Result<Exec, ClientError> {
        self.frames("commands/attach", &types::Pid { pid, signal: None }).await
    }

    async fn frames(&self, route: &str, body: &impl Serialize) -> Result<Exec, ClientError> {
        let path = format!("/sandboxes/{}/{route}", segment(&self.sandbox));
        let response = self.client.send(Method::POST, &path, body, true).await?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(problem(status, &read(response).await?));
        }
        let (reader, writer) = tokio::io::split(TokioIo::new(hyper::upgrade::on(response).await?));
        let frames = FrameReader::new(Box::new(reader) as _, Sender::Agent);
        Exec::begun(frames, Box::new(writer)).await.map_err(|e| ClientError::Answer(e.into()))
    }

    /// What its job has written, as lines of JSON.
    pub(crate) async fn logs(&self, follow: bool, tail: Option<usize>) -> Result<Lines, ClientError> {
        let tail = tail.map(|count| format!("&tail={count}")).unwrap_or_default();
        let path = format!("/sandboxes/{}/logs?follow={follow}{tail}", segment(&self.sandbox));
        self.client.lines(&path).await
    }

    /// Signals a command. Not over its own connection: there it would wait behind input that nobody reads.
    pub(crate) async fn signal(&self, pid: u32, signal: i32) -> Result<(), ClientError> {
        let path = format!("/sandboxes/{}/commands/kill", segment(&self.sandbox));
        let body = types::Pid { pid, signal: Some(signal) };
        self.client.whole(Method::POST, &path, &body).await.map(|_: Value| ())
    }
}
