//! A client's connection.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower::Service as _;

use super::Key;
use super::stream::{Peer, Stream};

/// A client has so long for the head of a request.
const HEAD: Duration = Duration::from_secs(30);

/// The connection of a request, in the request's extensions. It counts, and is awaited at the daemon's end, until the last
/// clone is gone: what goes on after the answer, on an upgraded connection, keeps one.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    key: Option<Arc<Key>>,
    client: Peer,
    ended: CancellationToken,
    _place: Arc<OwnedSemaphorePermit>,
    _awaited: TaskTrackerToken,
}

impl Connection {
    /// That of `client`, whoever comes in this way has to have `key`. `ended` is for [`Self::ended`].
    pub(super) fn new(
        client: Peer,
        place: OwnedSemaphorePermit,
        awaited: TaskTrackerToken,
        ended: CancellationToken,
        key: Option<Arc<Key>>,
    ) -> Self {
        Self { key, client, ended, _place: Arc::new(place), _awaited: awaited }
    }

    /// What its requests have to show.
    pub(crate) fn key(&self) -> Option<&Key> {
        self.key.as_deref()
    }

    /// Returns when the daemon waits no longer for what goes on.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Does `work`, which passes on what the client has sent; nothing where the client goes while that is held up.
    pub(crate) async fn while_there<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.client.gone() => None,
        }
    }

    /// Serves the client: until it goes, or until the answer to what it has asked when the daemon is `ending`.
    pub(super) async fn serve(self, stream: Stream, service: axum::Router, ending: CancellationToken) {
        let ended = self.ended.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(self.clone());
            service.clone().call(request)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            // The published client finds X-Request-Id in this spelling alone.
            .title_case_headers(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let served = tokio::select! {
            served = &mut connection => served,
            () = ending.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    served = connection => served,
                    () = ended.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection has broken off");
        }
    }
}
