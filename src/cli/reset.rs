//! `voidrun reset`

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::error::CliError;
use super::{Context, wait_for};
use crate::client::{end_daemon, log_path};
use crate::daemon::chain;
use crate::lock::{self, Lock};
use crate::sandbox::{Directory, Found, Sandboxes, adopt};
use crate::socket::Place;

/// What is ever in a store. Anything else there is somebody else's.
const PARTS: [&str; 10] =
    ["sandboxes", "snapshots", "warm", "images", "blobs", "refs", "ingest", "locks", "kernels", "store.json"];
/// The daemon ends, and machines give back their memory, in this time.
const PATIENCE: Duration = Duration::from_mins(1);
/// A machine that has begun to start or to end is waited for so long.
const ANSWER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// End all sandboxes and the daemon, and remove all that voidrun keeps
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The store goes (sandboxes with their disks, snapshots, images, kernels), the daemon's log and its socket. The configuration
and the credentials of `voidrun login` stay.

Examples:
  voidrun reset
  voidrun reset --yes"
)]
pub(crate) struct Args {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let home = &context.config.home.value;
    if !args.yes && !confirmed(home)? {
        return Err(CliError::Usage("nothing was removed".into()));
    }
    let began = Instant::now();
    let failed = |what: &Path| {
        let path = what.display().to_string();
        move |source| CliError::Remove { path, source }
    };
    // Whoever has the lock keeps the next daemon out.
    let lock = loop {
        wait_for("", async { Ok(end_daemon(&context.config).await?) })?;
        if !home.exists() {
            break None;
        }
        match Lock::take(home).map_err(failed(&lock::path(home)))? {
            Some(lock) => break Some(lock),
            None if began.elapsed() > PATIENCE => {
                return Err(failed(&lock::path(home))(io::ErrorKind::TimedOut.into()));
            }
            None => std::thread::sleep(PAUSE),
        }
    };
    let ended = end_sandboxes(context)?;
    let mut removed = Vec::new();
    let place = Place::of(&context.config).map_err(crate::client::ClientError::from)?;
    // The socket may be systemd's, which goes on listening.
    let is_dead =
        UnixStream::connect(place.address()).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    let socket = is_dead.then(|| place.path());
    let logs = [place.start_lock(), log_path(), log_path().with_extension("log.1")];
    for path in PARTS.iter().map(|part| home.join(part)).chain(socket).chain(logs) {
        let is_device = path == Path::new("/dev/null");
        if !is_device && remove(&path).map_err(failed(&path))? {
            removed.push(path);
        }
    }
    // The lock last: until then no daemon begins.
    let path = lock::path(home);
    if remove(&path).map_err(failed(&path))? {
        removed.push(path);
    }
    drop(lock);
    // Not with what somebody else has put there.
    if std::fs::remove_dir(home).is_ok() {
        removed.push(home.clone());
    }
    let removed: Vec<String> = removed.iter().map(|path| path.display().to_string()).collect();
    context.print(&json!({ "ended": ended, "removed": removed }), |_| {
        let sandboxes = ended.iter().map(|id| format!("ended {id}\n"));
        let paths = removed.iter().map(|path| format!("removed {path}\n"));
        sandboxes.chain(paths).collect()
    })
}

fn confirmed(home: &Path) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        let what = "all sandboxes, snapshots and images, with all that is on their disks";
        return Err(CliError::Usage(format!("reset removes {what}, in {}: say --yes", home.display())));
    }
    eprint!(
        "This ends all sandboxes, and removes them, all snapshots and all images in {}. Go on? [y/N] ",
        home.display()
    );
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|source| CliError::Input { what: "the answer".into(), source })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Ends every machine of the store. Returns the ids of its sandboxes; an error, when all others have ended, if one could not be.
fn end_sandboxes(context: &Context) -> Result<Vec<String>, CliError> {
    wait_for("", async {
        let (mut ended, mut failed) = (Vec::new(), None);
        for directory in Sandboxes::new(&context.config.home.value).list()? {
            let directory = Arc::new(directory);
            let id = directory.id().to_string();
            let end = tokio::task::spawn_blocking(move || end_sandbox(&directory));
            match end.await.unwrap_or_else(|e| Err(CliError::Runtime(e.into()))) {
                Ok(()) => ended.push(id),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(ended), Err)
    })
}

/// Blocks.
fn end_sandbox(directory: &Arc<Directory>) -> Result<(), CliError> {
    let failed = |source| directory.error("end the machine of", source);
    match adopt(directory, ANSWER).map_err(|e| failed(io::Error::other(chain(&e))))? {
        Found::Running { handle, .. } | Found::Deaf { handle, .. } => handle.end().map_err(failed)?,
        Found::Ended(_) => {}
    }
    Ok(())
}

/// False if it was not there.
fn remove(path: &PathBuf) -> io::Result<bool> {
    let found = match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    let removed = if found.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.map(|()| true)
}
