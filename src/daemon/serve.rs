//! `voidrun daemon`: from the lock to the last answer.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rootfs_builder::store::{Store, StoreError};
use sd_notify::NotifyState;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer as _;

use super::tcp::KeyError;
use super::{Daemon, Key, OpenError, Tcp};
use crate::api::{self, Seat};
use crate::config::Config;
use crate::socket::{Place, PlaceError};

/// So many connections at once; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 1024;
/// A client has so long for the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// Commands that run when the daemon is told to end get so long; their streams end then.
const GRACE: Duration = Duration::from_secs(5);
/// A daemon that was started by a command leaves when it has been idle for so long.
const IDLE: Duration = Duration::from_mins(5);
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
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
}

/// Serves until a signal ends it; with `auto` also until there has been nothing to do for some minutes. Sandboxes run on. It
/// listens at `given`, which is left as it is, or at a socket of its own, and at `tcp` as well. When it can be asked it says so
/// to `ready`, and takes it, and to systemd.
pub(crate) async fn run(
    config: Config,
    auto: bool,
    given: Option<StdUnixListener>,
    tcp: Option<Tcp>,
    ready: &mut Option<File>,
) -> Result<(), ServeError> {
    let tcp = match tcp {
        Some(Tcp { address, key_file }) => Some((address, Key::read(&key_file)?)),
        None => None,
    };
    let place = Place::of(&config)?;
    let store = Store::open(&config.home.value)?;
    // The lock comes first: whoever has it may replace the socket that a killed daemon has left.
    let daemon = {
        let open = tokio::task::spawn_blocking(move || Daemon::open(config, store));
        open.await.map_err(|e| ServeError::Runtime(e.into()))??
    };
    let tcp = match tcp {
        Some((address, key)) => Some(Door::open(address, key).await?),
        None => None,
    };
    let ours = given.is_none();
    let listener = match given {
        Some(given) => take(given).map_err(ServeError::Runtime)?,
        None => listen(&place)?,
    };
    tracing::info!(
        socket = if ours { place.path().display().to_string() } else { "systemd's".into() },
        "serves"
    );
    // Nothing is to be done where there is no systemd, or nobody waits any more.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    if let Some(mut ready) = ready.take() {
        let _ = ready.write_all(b"ready\n");
    }
    let result = serve(&daemon, listener, tcp, auto).await;
    // First the name, then the lock: the next daemon is not disturbed.
    if ours {
        let _ = std::fs::remove_file(place.address());
    }
    daemon.finish().await;
    tracing::info!("ends");
    result
}

/// A socket that somebody else has opened, and closes.
fn take(given: StdUnixListener) -> std::io::Result<UnixListener> {
    given.set_nonblocking(true)?;
    UnixListener::from_std(given)
}

fn listen(place: &Place) -> Result<UnixListener, ServeError> {
    let failed = |action| {
        move |source| ServeError::Socket { action, path: place.path().display().to_string(), source }
    };
    match std::fs::remove_file(place.address()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed("replace")(e)),
        _ => {}
    }
    let listener = UnixListener::bind(place.address()).map_err(failed("listen at"))?;
    // The directory keeps others out already.
    std::fs::set_permissions(place.address(), std::fs::Permissions::from_mode(0o600))
        .map_err(failed("protect"))?;
    Ok(listener)
}

/// A TCP address that is listened at.
struct Door {
    listener: TcpListener,
    key: Arc<Key>,
}

impl Door {
    async fn open(address: SocketAddr, key: Key) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Socket { action: "listen at", path: address.to_string(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        tracing::info!(url = %format_args!("http://{bound}"), "listens, for those who have the key");
        Ok(Self { listener, key: Arc::new(key) })
    }
}

/// A client on either side, and the key that it has to have.
async fn accept(
    unix: &UnixListener,
    tcp: Option<&Door>,
) -> std::io::Result<(Either<UnixStream, TcpStream>, Option<Arc<Key>>)> {
    let from_tcp = async {
        match tcp {
            Some(door) => door.listener.accept().await.map(|(stream, _)| (stream, Arc::clone(&door.key))),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        accepted = unix.accept() => Ok((Either::Left(accepted?.0), None)),
        accepted = from_tcp => {
            let (stream, key) = accepted?;
            // What is typed at a terminal is not kept waiting for the answer to what was typed before.
            let _ = stream.set_nodelay(true);
            Ok((Either::Right(stream), Some(key)))
        }
    }
}

async fn serve(
    daemon: &Arc<Daemon>,
    listener: UnixListener,
    tcp: Option<Door>,
    auto: bool,
) -> Result<(), ServeError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (connections, ending) = (TaskTracker::new(), CancellationToken::new());
    let service = api::router(Arc::clone(daemon));
    let mut idle_since = Instant::now();
    loop {
        let busy = !connections.is_empty() || !daemon.is_idle();
        if busy {
            idle_since = Instant::now();
        }
        let accepted = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&seats).acquire_owned().await.ok();
            (permit, accept(&listener, tcp.as_ref()).await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = tokio::time::sleep(IDLE / 10), if auto => {
                if !busy && idle_since.elapsed() >= IDLE {
                    tracing::info!("nothing to do");
                    break;
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, key)) => {
                let Some(permit) = permit else { break };
                let seat = Seat::new(permit, key);
                connections.spawn(connection(stream, service.clone(), ending.clone(), seat));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop((listener, tcp));
    ending.cancel();
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::info!("the commands that still run are ended");
    }
    Ok(())
}

/// Serves one client: until it goes, or until the answer to what it has asked when the daemon is `ending`. What becomes of an
/// upgraded connection keeps the `seat`.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: axum::Router,
    ending: CancellationToken,
    seat: Seat,
) {
    let service = Extension(seat).layer(service);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        // The published client finds X-Request-Id in this spelling alone.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection has broken off");
    }
}
