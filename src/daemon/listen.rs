//! The socket of the daemon: one of its own, which it makes anew when it is taken away, or one that systemd has opened.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;

use tokio::net::{UnixListener, UnixStream};

use super::ServeError;
use crate::config::Config;
use crate::lock::{Lock, Notice};
use crate::socket::Place;
use crate::version;

/// Where clients come.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Of a socket of our own.
    ours: Option<Ours>,
}

#[derive(Debug)]
struct Ours {
    place: Place,
    /// Device and inode: somebody may remove the name, or put another socket there.
    identity: (u64, u64),
}

impl Socket {
    /// `given`, which somebody else closes, or one of our own. Clients are told of it by the store's lock.
    pub(super) async fn open(
        config: &Config,
        given: Option<StdUnixListener>,
        auto: bool,
        lock: &Lock,
    ) -> Result<Self, ServeError> {
        let replaceable = auto || given.is_some();
        let socket = match given {
            Some(given) => Self::take(given).map_err(ServeError::Runtime)?,
            None => Self::listen(Place::of(config)?).await?,
        };
        let (version, pid) = (version().to_owned(), std::process::id());
        let notice = Notice { version, pid, socket: socket.path.clone(), replaceable };
        lock.publish(&notice).map_err(|source| ServeError::Socket {
            action: "tell clients of",
            path: socket.path(),
            source,
        })?;
        Ok(socket)
    }

    fn take(given: StdUnixListener) -> io::Result<Self> {
        let address = given.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| io::Error::other("systemd's socket has no path"))?;
        let path = std::path::absolute(path)?;
        given.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(given)?, path, ours: None })
    }

    /// The lock of the store is held: a socket there that nobody listens at is that of a killed daemon.
    async fn listen(place: Place) -> Result<Self, ServeError> {
        let path = place.path();
        let shown = &path;
        let failed =
            |action| move |source| ServeError::Socket { action, path: shown.display().to_string(), source };
        match UnixStream::connect(place.address()).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(place.address()).map_err(failed("replace"))?;
            }
            // Its queue may be full.
            _ => {
                let why =
                    "another process listens there: end it, or set XDG_RUNTIME_DIR to another directory";
                return Err(failed("listen at")(io::Error::new(io::ErrorKind::AddrInUse, why)));
            }
        }
        let listener = UnixListener::bind(place.address()).map_err(failed("listen at"))?;
        // The directory keeps others out already.
        std::fs::set_permissions(place.address(), Permissions::from_mode(0o600))
            .map_err(failed("protect"))?;
        let identity = identity(&place).map_err(failed("find"))?;
        Ok(Self { listener, path: path.clone(), ours: Some(Ours { place, identity }) })
    }

    /// For people.
    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether clients still find it: a session's directory goes with its last session, and one in /tmp with age.
    pub(super) fn is_there(&self) -> bool {
        let ours = self.ours.as_ref();
        // By its path: the directory itself may be gone, and another one be in its place.
        ours.is_none_or(|ours| {
            self.path.symlink_metadata().is_ok_and(|now| (now.dev(), now.ino()) == ours.identity)
        })
    }

    /// Nobody finds it any more.
    pub(super) fn close(self) {
        if let Some(ours) = &self.ours
            && self.is_there()
        {
            let _ = std::fs::remove_file(ours.place.address());
        }
    }
}

fn identity(place: &Place) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(place.address())?;
    Ok((found.dev(), found.ino()))
}
