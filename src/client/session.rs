//! A command in a sandbox of the daemon: the frames of [`protocol`] over an upgraded connection.

use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use protocol::Sender;
use serde_json::Value;

use super::{Client, ClientError, problem, read, segment};
use crate::api::types;
use crate::sandbox::{Exec, FrameReader};

/// A sandbox of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) client: Client,
    /// An id, a prefix of one, or a name.
    pub(crate) sandbox: String,
}

impl Remote {
    /// Starts a command. It is ended when its input is dropped.
    pub(crate) async fn exec(&self, exec: &types::Exec) -> Result<Exec, ClientError> {
        let path = format!("/sandboxes/{}/exec", segment(&self.sandbox));
        let response = self.client.send(Method::POST, &path, exec, true).await?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(problem(status, &read(response).await?));
        }
        let (reader, writer) = tokio::io::split(TokioIo::new(hyper::upgrade::on(response).await?));
        let frames = FrameReader::new(Box::new(reader) as _, Sender::Agent);
        Exec::begun(frames, Box::new(writer)).await.map_err(|e| ClientError::Answer(e.into()))
    }

    /// Signals a command. Not over its own connection: there it would wait behind input that nobody reads.
    pub(crate) async fn signal(&self, pid: u32, signal: i32) -> Result<(), ClientError> {
        let path = format!("/sandboxes/{}/commands/kill", segment(&self.sandbox));
        let body = types::Pid { pid, signal: Some(signal) };
        self.client.whole(Method::POST, &path, &body).await.map(|_: Value| ())
    }
}
