//! `voidrun daemon`: from the lock to the last answer.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rootfs_builder::store::{Store, StoreError};
use sd_notify::NotifyState;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use super::collect::collect;
use super::listen::Socket;
use super::{Daemon, OpenError, chain};
use crate::api;
use crate::config::Config;
use crate::socket::PlaceError;

/// So many connections at once; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 1024;
/// A client has so long for the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// Commands that run when the daemon is told to end get so long; their streams end then.
const GRACE: Duration = Duration::from_secs(5);
/// What they say last, that the daemon ends, has to be taken in this time.
const LAST: Duration = Duration::from_secs(2);
/// A daemon that was started by a command leaves when it has been idle for so long.
const IDLE: Duration = Duration::from_mins(5);
/// So often the daemon looks whether it is idle, and whether its socket is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Descriptors are short, or memory is.
const PAUSE: Duration = Duration::from_millis(100);

/// A daemon that cannot serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("cannot {action} {path}")]
    Socket { action: &'static str, path: String, source: std::io::Error },
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
}

/// Serves until a signal ends it; with `auto` also until there has been nothing to do for some minutes. Sandboxes run on. It
/// listens at `given`, which is left as it is, or at a socket of its own. When it can be asked it says so to `ready`, and
/// takes it, and to systemd.
pub(crate) async fn run(
    config: Config,
    auto: bool,
    given: Option<StdUnixListener>,
    ready: &mut Option<File>,
) -> Result<(), ServeError> {
    let store = Store::open(&config.home.value)?;
    // The lock comes first: whoever has it may replace the socket that a killed daemon has left.
    let daemon = Daemon::open(config, store).await?;
    let socket = Socket::open(&daemon.config, given, auto, &daemon.lock).await?;
    tracing::info!(socket = socket.path(), "serves");
    // Nothing is to be done where there is no systemd, or nobody waits any more.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    if let Some(mut ready) = ready.take() {
        let _ = ready.write_all(b"ready\n");
    }
    let collecting = tokio::spawn(collect(Arc::clone(&daemon)));
    let result = serve(&daemon, socket, auto).await;
    collecting.abort();
    daemon.finish().await;
    tracing::info!("ends");
    result
}

async fn serve(daemon: &Arc<Daemon>, mut socket: Socket, auto: bool) -> Result<(), ServeError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let (ending, ended) = (CancellationToken::new(), CancellationToken::new());
    let service = api::router(Arc::clone(daemon));
    let mut idle_since = Instant::now();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let busy = !connections.is_empty() || !daemon.is_idle();
        if busy {
            idle_since = Instant::now();
        }
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, socket.listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = look.tick() => {
                if auto && !busy && idle_since.elapsed() >= IDLE {
                    tracing::info!("nothing to do");
                    break;
                }
                if !socket.is_there() {
                    listen_again(daemon, &mut socket, auto).await;
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let (service, ending) = (service.clone(), ending.clone());
                let (place, tracker, ended) = (place.ok().map(Arc::new), connections.clone(), ended.clone());
                let own = Connection { _place: place, tracker, ended };
                connections.spawn(async move {
                    if let Err(error) = connection(stream, service, &ending, own).await {
                        tracing::debug!(%error, "a connection has broken off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // First the name, then the lock: the next daemon is not disturbed.
    let _ = daemon.lock.clear();
    socket.close();
    ending.cancel();
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::info!("the commands that still run are ended");
        ended.cancel();
        let _ = tokio::time::timeout(LAST, connections.wait()).await;
    }
    Ok(())
}

/// The connection of a request, in the request's extensions: it counts, and is awaited at the daemon's end, for as long as
/// this is kept. For what goes on after the answer, on an upgraded connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    _place: Option<Arc<OwnedSemaphorePermit>>,
    tracker: TaskTracker,
    ended: CancellationToken,
}

impl Connection {
    /// Goes on with it in the background. It has to end soon after [`Self::ended`].
    pub(crate) fn spawn(self, work: impl Future<Output = ()> + Send + 'static) {
        let tracker = self.tracker.clone();
        tracker.spawn(async move {
            work.await;
            drop(self);
        });
    }

    /// Cancelled when the daemon waits no longer for what goes on.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
}

/// The connections there are go on. What fails is tried again at the next look.
async fn listen_again(daemon: &Daemon, socket: &mut Socket, auto: bool) {
    match Socket::open(&daemon.config, None, auto, &daemon.lock).await {
        Ok(new) => {
            tracing::warn!(
                before = socket.path(),
                socket = new.path(),
                "the socket was taken away: serves anew"
            );
            *socket = new;
        }
        Err(error) => {
            tracing::warn!(socket = socket.path(), error = %chain(&error), "the socket was taken away");
        }
    }
}

/// Serves one client: until it goes, or until the answer to what it has asked when the daemon is `ending`.
async fn connection(
    stream: UnixStream,
    service: axum::Router,
    ending: &CancellationToken,
    own: Connection,
) -> Result<(), hyper::Error> {
    let ended = own.ended();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(own.clone());
        service.clone().call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        served = &mut connection => return served,
        () = ending.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        served = connection => served,
        () = ended.cancelled() => Ok(()),
    }
}
