//! The daemon is started by the first command that needs it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::fs::{FlockOperation, flock};
use rustix::pipe::{PipeFlags, pipe_with};

use super::ClientError;
use crate::config::{Config, Origin};
use crate::socket::Place;

/// The daemon's end of the pipe by which it tells that it is ready, in the daemon.
const READY_FD: i32 = 3;
/// A daemon that somebody else has started is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// A longer log is put aside when a daemon is started, in bytes.
const MAX_LOG: u64 = 10 << 20;

/// Returns when the daemon can be asked.
pub(super) async fn ensure(place: &Arc<Place>, config: &Config) -> Result<(), ClientError> {
    if listens(place)? {
        return Ok(());
    }
    let (place, config) = (Arc::clone(place), config.clone());
    let started = tokio::task::spawn_blocking(move || start_once(&place, &config)).await;
    started.map_err(|e| ClientError::Host { action: "start the daemon", source: e.into() })?
}

/// Whether somebody takes connections.
fn listens(place: &Place) -> Result<bool, ClientError> {
    match UnixStream::connect(place.address()) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(false),
        Err(source) => Err(ClientError::Connect { path: place.path().display().to_string(), source }),
    }
}

/// Of several commands that come at once, one starts the daemon and the others wait for it.
fn start_once(place: &Place, config: &Config) -> Result<(), ClientError> {
    let failed = |action| move |source| ClientError::Host { action, source };
    let lock = place.start_lock();
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(lock);
    let lock = lock.map_err(failed("open the lock beside the daemon's socket"))?;
    rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
        .map_err(|e| failed("lock the lock beside the daemon's socket")(e.into()))?;
    if listens(place)? {
        return Ok(());
    }
    let log = log_path();
    let reason = start(config, &log).map_err(failed("start the daemon"))?;
    match reason.as_str() {
        "ready\n" => Ok(()),
        // One that was started by hand, or one that is just ending: it answers soon, or it is soon gone.
        other if other.contains("another daemon has the store") => wait(place, config, &log),
        other => {
            let reason = if other.is_empty() { "it has ended at once" } else { other.trim_end() };
            Err(ClientError::Start { reason: reason.to_owned(), log: log.display().to_string() })
        }
    }
}

fn wait(place: &Place, config: &Config, log: &Path) -> Result<(), ClientError> {
    let end = Instant::now() + PATIENCE;
    loop {
        std::thread::sleep(PAUSE);
        if listens(place)? {
            return Ok(());
        }
        let started = start(config, log);
        match started.map_err(|source| ClientError::Host { action: "start the daemon", source })?.as_str() {
            "ready\n" => return Ok(()),
            reason if Instant::now() > end => {
                let (reason, log) = (reason.trim_end().to_owned(), log.display().to_string());
                return Err(ClientError::Start { reason, log });
            }
            _ => {}
        }
    }
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

fn read_all(pipe: OwnedFd, text: &mut String) -> io::Result<()> {
    File::from(pipe).take(64 << 10).read_to_string(text).map(drop)
}

/// `$XDG_STATE_HOME/voidrun/daemon.log`
fn log_path() -> PathBuf {
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
