//! A machine that somebody else has started: a daemon that was here before us.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm::control::{Contact, ControlError, Status};

use super::directory::{Claim, Directory, DirectoryError};
use super::handle::{CONTROL, Ending, Handle};
use super::process::Process;
use super::traffic::Traffic;

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
        /// Whether its agent has come up; the machine itself ends one that does not.
        ready: bool,
    },
    /// It does, and cannot be asked, for this reason. It can be ended.
    Deaf { handle: Handle, error: AdoptError },
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

/// Finds out whether the sandbox runs: by its lock, and never by its record. A machine that has begun to end holds its lock for
/// some ms more, and one that has begun to start does not answer yet: `patience` is for them. Blocks.
pub(crate) fn adopt(directory: &Arc<Directory>, patience: Duration) -> Result<Found, AdoptError> {
    let end = Instant::now() + patience;
    loop {
        if !matches!(directory.claim()?, Claim::Held) {
            return Ok(Found::Ended(Ending::of(directory)));
        }
        match greet(directory) {
            Err(AdoptError::Control { .. })
            | Ok(
                Found::Running { ready: false, .. }
                | Found::Deaf {
                    error: AdoptError::Control { source: ControlError::Io(_) | ControlError::Closed, .. },
                    ..
                },
            ) if Instant::now() < end => std::thread::sleep(PAUSE),
            found => return found,
        }
    }
}

fn greet(directory: &Arc<Directory>) -> Result<Found, AdoptError> {
    let id = || directory.id().to_string();
    let failed = |source: ControlError| AdoptError::Control { id: id(), source };
    let stream = UnixStream::connect(directory.socket(CONTROL)).map_err(|e| failed(e.into()))?;
    let contact = Contact::new(stream, ANSWER).map_err(failed)?;
    // Before anything that the machine says: whatever that is, its process can be ended.
    let pidfd = contact.pidfd().try_clone().map_err(|e| failed(e.into()))?;
    let process = Process::new(pidfd).map_err(|e| failed(e.into()))?;
    let directory = Arc::clone(directory);
    let mut handle = Handle {
        directory: Arc::clone(&directory),
        process,
        traffic: Traffic::default(),
        network: Mutex::default(),
        _owner: None,
        agent: None,
    };
    let status = contact.greeted().map_err(failed).and_then(|mut client| {
        if client.greeting().id != directory.id().as_str() {
            return Err(AdoptError::Other { id: id(), other: client.greeting().id.clone() });
        }
        client.status().map_err(failed)
    });
    Ok(match status {
        Ok(Status { paused, ready, network, .. }) => {
            // What was before is not of this daemon's time.
            handle.network = Mutex::new(network.unwrap_or_default());
            Found::Running { handle, paused, ready }
        }
        Err(error) => Found::Deaf { handle, error },
    })
}
