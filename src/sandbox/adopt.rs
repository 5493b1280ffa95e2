//! A machine that somebody else has started: a daemon that was here before us.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm::control::{Client, ControlError};

use super::directory::{Claim, Directory, DirectoryError};
use super::handle::{CONTROL, Ending, Handle};
use super::process::Process;

/// A machine that has begun to end holds its lock for some ms more, and one that has begun to start does not answer yet.
const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);
/// Neither the lock nor the socket tells when it changes.
const PAUSE: Duration = Duration::from_millis(20);

/// What has become of a sandbox's machine.
#[derive(Debug)]
pub(crate) enum Found {
    /// It runs.
    Running {
        handle: Handle,
        /// Whether its vCPUs are halted.
        paused: bool,
    },
    /// It does not, for this reason.
    Ended(Ending),
}

/// A sandbox that somebody runs, and whose machine cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("the machine of the sandbox {id} runs and cannot be talked to")]
    Control { id: String, source: ControlError },
    #[error("the machine of the sandbox {id} says that it is that of {other}")]
    Other { id: String, other: String },
}

/// Finds out whether the sandbox runs: by its lock, and never by its record. Blocks.
pub(crate) fn adopt(directory: &Arc<Directory>) -> Result<Found, AdoptError> {
    let end = Instant::now() + PATIENCE;
    loop {
        if !matches!(directory.claim()?, Claim::Held) {
            return Ok(Found::Ended(Ending::of(directory)));
        }
        match greet(directory) {
            Err(AdoptError::Control { .. }) if Instant::now() < end => std::thread::sleep(PAUSE),
            found => return found,
        }
    }
}

fn greet(directory: &Arc<Directory>) -> Result<Found, AdoptError> {
    let id = || directory.id().to_string();
    let failed = |source: ControlError| AdoptError::Control { id: id(), source };
    let stream = UnixStream::connect(directory.socket(CONTROL)).map_err(|e| failed(e.into()))?;
    let mut client = Client::new(stream, ANSWER).map_err(failed)?;
    if client.greeting().id != directory.id().as_str() {
        return Err(AdoptError::Other { id: id(), other: client.greeting().id.clone() });
    }
    let paused = client.status().map_err(failed)?.paused;
    let process = Process::new(client.into_pidfd()).map_err(|e| failed(e.into()))?;
    let directory = Arc::clone(directory);
    let handle = Handle { directory, process, ephemeral: false, _owner: None, agent: None };
    Ok(Found::Running { handle, paused })
}
