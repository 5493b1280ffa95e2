//! A daemon of another release than this program.
//!
//! A newer program ends an older daemon that comes again by itself, as SIGTERM does: sandboxes run on and what runs in the
//! background in them too, requests and sessions have some seconds to end. Once a command, so two programs never take turns;
//! an older one only says so.

use std::cmp::Ordering;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use semver::Version;

use super::ClientError;
use super::start::{in_background, owner};
use crate::config::Config;
use crate::lock::{Notice, Owner};
use crate::version;

/// The daemon awaits what goes on in it, within bounds of its own.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Ends the daemon that has said this if it is of an older release. Returns whether it is gone, by whomever.
pub(super) async fn replace(config: &Config, notice: Notice) -> Result<bool, ClientError> {
    match compare(&notice.version) {
        Some(Ordering::Less) if notice.replaceable => {}
        Some(Ordering::Less) => {
            tell(&notice, "older", "end it (its process is PID), and the next command starts a newer one");
            return Ok(false);
        }
        Some(Ordering::Greater) => {
            tell(&notice, "newer", "this program may not know all that it does");
            return Ok(false);
        }
        _ => return Ok(false),
    }
    end_that(config, notice).await.map(|()| true)
}

/// Ends the daemon of the store, if there is one. Sandboxes run on.
pub(crate) async fn end_daemon(config: &Config) -> Result<(), ClientError> {
    match owner(config)? {
        Owner::Daemon(notice) => end_that(config, notice).await,
        _ => Ok(()),
    }
}

async fn end_that(config: &Config, notice: Notice) -> Result<(), ClientError> {
    let (config, expected) = (config.clone(), notice.clone());
    let is_still =
        move || Owner::of(&config.home.value).map(|owner| owner == Owner::Daemon(expected.clone()));
    in_background("end the daemon", move || end(&notice, is_still)).await
}

/// The daemon's release to ours; none for what is no release.
fn compare(daemon: &str) -> Option<Ordering> {
    let parse = |text| Version::parse(text).ok();
    Some(parse(daemon)?.cmp_precedence(&parse(version())?))
}

fn tell(notice: &Notice, how: &str, what: &str) {
    let (daemon, what) = (notice.version.escape_debug(), what.replace("PID", &notice.pid.to_string()));
    // Nothing is to be done when nobody reads it.
    let _ = writeln!(
        io::stderr(),
        "warning: the daemon is of a {how} release, {daemon}, than this voidrun, {}: {what}",
        version()
    );
}

/// Several commands may come at once.
fn end(notice: &Notice, is_still: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let Some(pid) = i32::try_from(notice.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        process => process?,
    };
    // Only now the number is known to be the daemon's: the lock is given back by its death.
    let line = std::fs::read(format!("/proc/{}/cmdline", notice.pid)).unwrap_or_default();
    if !is_still()? || !line.split(|byte| *byte == 0).skip(1).any(|word| word == b"daemon") {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let end = Instant::now() + PATIENCE;
    // It takes its notice back first; the caller waits for the lock.
    while is_still()? {
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(compare(version()), Some(Ordering::Equal));
        assert_eq!(compare("0.0.9"), Some(Ordering::Less));
        assert_eq!(compare("1000.0.0"), Some(Ordering::Greater));
        // Builds of one release are not ordered.
        assert_eq!(compare(&format!("{}+other", version())), Some(Ordering::Equal));
        assert_eq!(compare("nonsense"), None);
    }
}
