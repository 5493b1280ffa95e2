//! Trees in and out of a sandbox of the daemon, as tar streams.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode, header};
use serde_json::Value;

use super::{Body, ClientError, Remote, open, problem, read, segment};
use crate::api::files::File;

impl Remote {
    fn files(&self, route: &str, path: &str) -> String {
        format!("/sandboxes/{}/files/{route}?path={}", segment(&self.sandbox), segment(path))
    }

    /// What stands at a path of the sandbox, through symlinks; none if nothing does.
    pub(crate) async fn stat(&self, path: &str) -> Result<Option<File>, ClientError> {
        match self.client.ask(Method::GET, &self.files("stat", path), &()).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == "fileNotFound" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A file or a tree.
    pub(crate) async fn pack(&self, path: &str, follow: bool) -> Result<Incoming, ClientError> {
        let path = format!("{}&follow={follow}", self.files("archive", path));
        let response = self.client.send(Method::GET, &path, &(), false).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(problem(status, &read(response).await?)),
        }
    }

    /// Unpacks `body` beneath a path.
    pub(crate) async fn unpack(&self, path: &str, body: Body) -> Result<(), ClientError> {
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("/v1{}", self.files("archive", path)))
            .header(header::HOST, "voidrun")
            .header(header::CONTENT_TYPE, "application/x-tar")
            .body(body)
            .map_err(|e| ClientError::Answer(e.into()))?;
        let response = open(&self.client.place).await?.send_request(request).await?;
        let status = response.status();
        let answer = read(response).await?;
        if !status.is_success() {
            return Err(problem(status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|e| ClientError::Answer(e.into())).map(|_: Value| ())
    }
}
