//! `GET /events`: what happens to sandboxes from now on, as NDJSON or, asked for by `Accept`, as server-sent events.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body as Answer;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};

use utoipa::IntoParams;

use super::answers::ServerSentEvent;
use super::input::Parameters;
use super::problem::Problem;
use super::sandboxes::selector;
use super::stream::Format;
use super::types::time;
use crate::daemon::{Daemon, Filter, Follower, Kind, Told};

/// Of which sandboxes.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// An id, the beginning of one, or a name.
    sandbox: Option<String>,
    /// `k=v,k2=v2`
    #[serde(alias = "label")]
    labels: Option<String>,
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Event(Event),
    Missed(Missed),
}

/// What has happened to a sandbox, which is shown as it is since then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    /// RFC 3339.
    pub(crate) time: String,
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    /// Why, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// This client was too slow.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Missed {
    kind: MissedKind,
    /// Events that it is not told any more, of whatever sandbox.
    pub(crate) missed: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MissedKind {
    Missed,
}

impl From<Told> for Line {
    fn from(told: Told) -> Self {
        match told {
            Told::Missed(missed) => Self::Missed(Missed { kind: MissedKind::Missed, missed }),
            Told::Event(event) => Self::Event(Event {
                time: time(event.time_ms),
                kind: event.kind,
                id: event.id.clone(),
                name: event.name.clone(),
                image: event.image.clone(),
                labels: event.labels.clone(),
                reason: event.reason.clone(),
            }),
        }
    }
}

impl Line {
    fn bytes(&self, lines: bool) -> Bytes {
        // Nothing in it is what JSON cannot say, and JSON has no line ends in it.
        let json = serde_json::to_string(self).unwrap_or_default();
        if lines {
            return format!("{json}\n").into();
        }
        // As the member `kind` has it.
        let kind = match self {
            Self::Event(event) => event.kind.to_string(),
            Self::Missed(_) => "missed".to_owned(),
        };
        format!("event:{kind}\ndata:{json}\n\n").into()
    }
}

/// Tells what happens to sandboxes from now on.
#[utoipa::path(
    get, path = "/events", operation_id = "followEvents", tag = "daemon",
    params(Wanted),
    responses((
        status = 200,
        description = "A line for each event, until the client goes or the daemon ends",
        content((String = "application/x-ndjson"), (ServerSentEvent = "text/event-stream"))
    ))
)]
pub(super) async fn follow(
    State(daemon): State<Arc<Daemon>>,
    Parameters(wanted): Parameters<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if wanted.sandbox.as_ref().is_some_and(String::is_empty) {
        return Err(Problem::field("sandbox", "is empty: expected an id, the beginning of one, or a name"));
    }
    let labels = selector(wanted.labels.as_deref().unwrap_or_default())?;
    let follower = daemon.follow_events(Filter { sandbox: wanted.sandbox, labels })?;
    let format = Format::asked(&headers).unwrap_or(Format::Lines);
    let lines = matches!(format, Format::Lines);
    let body = unfold(follower, move |mut follower: Follower| async move {
        let line = Line::from(follower.next().await?);
        Some((Ok::<_, Infallible>(line.bytes(lines)), follower))
    });
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Answer::from_stream(body)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let event = Line::Event(Event {
            time: time(0),
            kind: Kind::Failed,
            id: "0123456789ab".to_owned(),
            name: "dev".to_owned(),
            image: "code".to_owned(),
            labels: BTreeMap::new(),
            reason: Some("the guest's kernel has panicked: \r\n\nevent:x".to_owned()),
        });
        let json = r#"{"time":"1970-01-01T00:00:00.000Z","kind":"failed","id":"0123456789ab","name":"dev","image":"code","reason":"the guest's kernel has panicked: \r\n\nevent:x"}"#;
        assert_eq!(event.bytes(true), format!("{json}\n"));
        assert_eq!(event.bytes(false), format!("event:failed\ndata:{json}\n\n"));
        let missed = Line::from(Told::Missed(7));
        assert_eq!(missed.bytes(true), "{\"kind\":\"missed\",\"missed\":7}\n");
        assert_eq!(missed.bytes(false), "event:missed\ndata:{\"kind\":\"missed\",\"missed\":7}\n\n");
        // As the command line reads them.
        assert!(matches!(serde_json::from_str(json), Ok(Line::Event(event)) if event.kind == Kind::Failed));
        assert!(matches!(serde_json::from_slice(&missed.bytes(true)), Ok(Line::Missed(_))));
    }
}
