//! Files of a sandbox, see [`crate::sandbox`].

use std::time::Duration;

use protocol::{FileInfo, FileRequest, Request};

use super::error::DaemonError;
use super::sandbox::{ANSWER, Sandbox};
use super::state::State;
use crate::sandbox::{Entries, ExecError, FileEvents, Handle, Sink, Source};

/// What goes through a whole tree may take so long.
const TREE: Duration = Duration::from_mins(10);

/// What cannot be done when a request about files fails.
const FILES: &str = "reach the files of";

impl Sandbox {
    async fn files<T>(
        &self,
        limit: Duration,
        work: impl AsyncFnOnce(&Handle) -> Result<T, ExecError>,
    ) -> Result<T, DaemonError> {
        let handle = self.machine("use the files of", &[State::Running])?;
        self.answered_within(limit, FILES, &handle, work(&handle)).await
    }

    /// What stands at a path.
    pub(crate) async fn stat(&self, path: String) -> Result<FileInfo, DaemonError> {
        self.files(ANSWER, async |handle| handle.stat(path).await).await
    }

    /// What is in a directory, or is found below it.
    pub(crate) async fn entries(&self, request: FileRequest) -> Result<Entries, DaemonError> {
        self.files(TREE, async |handle| handle.entries(request).await).await
    }

    /// A change that needs no more than to be asked for.
    pub(crate) async fn change_file(&self, request: FileRequest) -> Result<(), DaemonError> {
        self.files(TREE, async |handle| handle.ask(&Request::File(request)).await).await
    }

    /// What stands at a path, and the content of it, which is a file.
    pub(crate) async fn read_file(&self, path: String) -> Result<(FileInfo, Source), DaemonError> {
        self.files(ANSWER, async |handle| handle.read(path).await).await
    }

    /// A file or a tree as a tar stream.
    pub(crate) async fn pack(&self, path: String, follow: bool) -> Result<Source, DaemonError> {
        self.files(ANSWER, async |handle| handle.pack(path, follow).await).await
    }

    /// Begins to write what `request` says.
    pub(crate) async fn write(&self, request: Request) -> Result<Sink, DaemonError> {
        self.files(ANSWER, async |handle| handle.write(&request).await).await
    }

    /// What a request for a watch is answered with.
    pub(super) async fn file_events(&self, request: FileRequest) -> Result<FileEvents, DaemonError> {
        self.files(ANSWER, async |handle| handle.watch(request).await).await
    }

    /// Why a transfer has broken off.
    pub(crate) async fn cause_of_files(&self, error: ExecError) -> DaemonError {
        let handle = self.status().handle.clone();
        self.explain(FILES, handle.as_deref(), error).await
    }
}
