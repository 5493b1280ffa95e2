//! The daemon is started by the first command that needs it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use hyper::Method;
use rustix::fs::{FlockOperation, flock};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use tokio::net::UnixStream;

use super::{Client, ClientError, release};
use crate::config::{Config, Origin};
use crate::lock::{Notice, Owner};
use crate::socket::{Place, PlaceError};

/// The daemon's end of the pipe by which it tells that it is ready, in the daemon.
const READY_FD: i32 = 3;
/// A daemon that somebody else has started is waited for so long.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);
/// A longer log is put aside when a daemon is started, in bytes.
const MAX_LOG: u64 = 10 << 20;

/// The place of the daemon, when it can be asked.
pub(super) async fn ensure(config: &Config) -> Result<Place, ClientError> {
    if let Some((place, notice)) = find(config).await?
        && !release::replace(config, notice).await?
    {
        return Ok(place);
    }
    let own = Place::of(config)?;
    // Of several commands that come at once, one starts the daemon and the others wait for it.
    let _starting =
        in_background("lock the lock beside the daemon's socket", move || lock_start(&own)).await?;
    let (end, log) = (Instant::now() + PATIENCE, log_path());
    loop {
        if let Some((place, _)) = find(config).await? {
            return Ok(place);
        }
        // One that somebody has started by hand, or that is just ending, answers soon, or is soon gone.
        let mut reason =
            format!("another daemon has the store {} and does not listen", config.home.value.display());
        if owner(config)? == Owner::Nobody {
            let (config, log) = (config.clone(), log.clone());
            reason = in_background("start the daemon", move || start(&config, &log)).await?;
        }
        let soon = reason == "ready\n" || reason.contains("another daemon has the store");
        if !soon || Instant::now() > end {
            let reason = if reason.is_empty() { "it has ended at once" } else { reason.trim_end() };
            return Err(ClientError::Start { reason: reason.to_owned(), log: log.display().to_string() });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The daemon that has the store, if it takes connections.
async fn find(config: &Config) -> Result<Option<(Place, Notice)>, ClientError> {
    match owner(config)? {
        Owner::Daemon(notice) => listening(notice).await,
        Owner::Silent => Ok(None),
        Owner::Nobody => {
            let place = Place::of(config)?;
            // systemd may listen for a daemon that does not run yet: a request starts it. Whether it is that of this store
            // is then known by the lock.
            if !accepts(&place).await? || !wakes(place).await {
                return Ok(None);
            }
            match owner(config)? {
                Owner::Daemon(notice) => listening(notice).await,
                _ => Ok(None),
            }
        }
    }
}

pub(super) fn owner(config: &Config) -> Result<Owner, ClientError> {
    Owner::of(&config.home.value)
        .map_err(|source| ClientError::Host { action: "look at the lock daemon.lock of the store", source })
}

/// The place, unless nobody listens there.
async fn listening(notice: Notice) -> Result<Option<(Place, Notice)>, ClientError> {
    match Place::at(&notice.socket) {
        Ok(place) => Ok(accepts(&place).await?.then_some((place, notice))),
        // The directory went with the last session; the daemon notices that.
        Err(PlaceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether somebody takes connections.
async fn accepts(place: &Place) -> Result<bool, ClientError> {
    match UnixStream::connect(place.address()).await {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(false),
        Err(source) => Err(ClientError::Connect { path: place.path().display().to_string(), source }),
    }
}

/// Whether a request there is answered.
async fn wakes(place: Place) -> bool {
    let client = Client::at(place);
    let answer = client.whole(Method::GET, "/version", &());
    tokio::time::timeout(PATIENCE, answer).await.is_ok_and(|answer: Result<Value, _>| answer.is_ok())
}

pub(super) async fn in_background<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ClientError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(e.into()));
    done.map_err(|source| ClientError::Host { action, source })
}

fn lock_start(place: &Place) -> io::Result<File> {
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(place.start_lock())?;
    rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))?;
    Ok(lock)
}

/// Starts a daemon; returns what it says of its start.
fn start(config: &Config, log: &Path) -> io::Result<String> {
    let (ready, its_ready) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("daemon").arg("--auto").arg("--ready-fd").arg(READY_FD.to_string());
    if matches!(config.home.origin, Origin::Flag(_)) {
        command.arg("--home").arg(std::path::absolute(&config.home.value)?);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(open_log(log)?);
    // What the caller of this command has left open is not for a daemon: whoever reads from a pipe would wait for its end for
    // ever.
    // SAFETY: a system call alone, which touches no memory; what the child needs gets its number afterwards.
    unsafe { command.pre_exec(close_all_at_exec) };
    let mapping = FdMapping { parent_fd: its_ready, child_fd: READY_FD };
    command.fd_mappings(vec![mapping]).map_err(io::Error::other)?;
    // It is nobody's child for long: this process ends before it does.
    let child = command.spawn()?;
    drop(command);
    let mut reason = String::new();
    read_all(ready, &mut reason)?;
    drop(child);
    Ok(reason)
}

/// All but standard input, output and error.
fn close_all_at_exec() -> io::Result<()> {
    // SAFETY: the kernel touches no memory here, and closes nothing yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn read_all(pipe: OwnedFd, text: &mut String) -> io::Result<()> {
    File::from(pipe).take(64 << 10).read_to_string(text).map(drop)
}

/// `$XDG_STATE_HOME/voidrun/daemon.log`
pub(crate) fn log_path() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    state.map_or_else(|| "/dev/null".into(), |state| state.join("voidrun/daemon.log"))
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    if path.metadata().is_ok_and(|found| found.is_file() && found.len() > MAX_LOG) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
