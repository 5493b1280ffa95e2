//! What a check has found. The JSON is an interface: fields are added, not changed.

use std::error::Error;

use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    /// `GROUP.NAME`
    pub(super) check: &'static str,
    pub(super) status: Status,
    /// What there is.
    pub(super) detail: String,
    /// What to do, if anything is to be done: one or more lines.
    pub(super) remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Status {
    Ok,
    /// Machines run, but something is worse than it could be.
    Warning,
    /// Machines do not run.
    Failed,
}

impl Finding {
    pub(super) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, detail: detail.into(), remedy: None }
    }

    pub(super) fn warning(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, status: Status::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn failed(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, status: Status::Failed, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// An error and its sources in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
