//! `voidrun daemon`: from the lock to the last answer.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use rootfs_builder::store::{Store, StoreError};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::collect::collect;
use super::listen::Socket;
use super::network::follow_resolvers;
use super::stream::Stream;
use super::tcp::{Door, KeyError};
use super::{Connection, Daemon, Key, OpenError, Tcp, chain};
use crate::api;
use crate::config::Config;
use crate::socket::PlaceError;

/// So many connections at once; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Commands that run when the daemon is told to end get so long; their streams end then.
const GRACE: Duration = Duration::from_secs(5);
/// What they say last, that the daemon ends, has to be taken in this time.
const LAST: Duration = Duration::from_secs(2);
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
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
}

/// Serves until a signal ends it; with `auto` also until there has been nothing to do for the time that is configured. Sandboxes run on.
/// It listens at `given`, which is left as it is, or at a socket of its own, and at `tcp` as well. When it can be asked it says so
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
    let store = Store::open(&config.home.value)?;
    // The lock comes first: whoever has it may replace the socket that a killed daemon has left.
    let daemon = Daemon::open(config, store).await?;
    let door = match tcp {
        Some((address, key)) => Some(Door::open(address, key).await?),
        None => None,
    };
    let socket = Socket::open(&daemon.config, given, auto, &daemon.lock).await?;
    tracing::info!(socket = socket.path(), "serves");
    // Nothing is to be done where there is no systemd, or nobody waits any more.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    if let Some(mut ready) = ready.take() {
        let _ = ready.write_all(b"ready\n");
    }
    let collecting = tokio::spawn(collect(Arc::clone(&daemon)));
    let following = tokio::spawn(follow_resolvers(Arc::clone(&daemon)));
    let result = serve(&daemon, socket, door, auto).await;
    collecting.abort();
    following.abort();
    daemon.finish().await;
    tracing::info!("ends");
    result
}

async fn serve(
    daemon: &Arc<Daemon>,
    mut socket: Socket,
    door: Option<Door>,
    auto: bool,
) -> Result<(), ServeError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let (ending, ended) = (CancellationToken::new(), CancellationToken::new());
    let service = api::router(Arc::clone(daemon));
    let (limit, mut idle_since) = (daemon.config.daemon_idle.value, Instant::now());
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let busy = !connections.is_empty() || !daemon.is_idle();
        if busy {
            idle_since = Instant::now();
        }
        let accepted = tokio::select! {
            accepted = accept(&socket, &places, door.as_ref()) => accepted,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = look.tick() => {
                if auto && !busy && !limit.is_zero() && idle_since.elapsed() >= limit {
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
            Ok((stream, place, key)) => {
                let connection =
                    Connection::new(stream.peer(), place, connections.token(), ended.clone(), key);
                connections.spawn(connection.serve(stream, service.clone(), ending.clone()));
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
    drop(door);
    ending.cancel();
    daemon.events.end();
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::info!("the commands that still run are ended");
        ended.cancel();
        let _ = tokio::time::timeout(LAST, connections.wait()).await;
    }
    Ok(())
}

/// A client on either side, its place, and the key that it has to have.
async fn accept(
    socket: &Socket,
    places: &Arc<Semaphore>,
    door: Option<&Door>,
) -> std::io::Result<(Stream, OwnedSemaphorePermit, Option<Arc<Key>>)> {
    let by_socket = async {
        // The semaphore is never closed.
        let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
        let (stream, _) = socket.listener.accept().await?;
        Ok((Stream::from(stream), place, None))
    };
    let by_tcp = async {
        match door {
            Some(door) => door.accept().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        accepted = by_socket => accepted,
        accepted = by_tcp => accepted.map(|(stream, place, key)| (Stream::from(stream), place, Some(key))),
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
