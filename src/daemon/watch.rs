//! Watches over files: begun by one request, and followed by another. One that nobody follows is ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::FileRequest;

use super::error::DaemonError;
use super::sandbox::Sandbox;
use crate::sandbox::FileEvents;

/// So many of a sandbox wait for their followers.
const MAX_WAITING: usize = 32;
/// And so long.
const WAIT: Duration = Duration::from_mins(1);

/// Those that have begun and are not followed yet, by their session ids.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<HashMap<String, FileEvents>>);

impl Watches {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, FileEvents>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox {
    /// Begins a watch; returns its session id. What happens from now on is kept for who follows it.
    pub(crate) async fn watch(self: &Arc<Self>, request: FileRequest) -> Result<String, DaemonError> {
        let events = self.file_events(request).await?;
        let session = session_id().map_err(|source| self.host("draw a session id for", source))?;
        {
            let mut waiting = self.watches.waiting();
            if waiting.len() == MAX_WAITING {
                return Err(DaemonError::TooManyWatches { limit: MAX_WAITING, sandbox: self.name() });
            }
            waiting.insert(session.clone(), events);
        }
        let (sandbox, late) = (Arc::downgrade(self), session.clone());
        tokio::spawn(async move {
            tokio::time::sleep(WAIT).await;
            if let Some(sandbox) = sandbox.upgrade() {
                sandbox.watches.waiting().remove(&late);
            }
        });
        Ok(session)
    }

    /// What the watch of a session tells; it ends when this is dropped.
    pub(crate) fn follow(&self, session: &str) -> Result<FileEvents, DaemonError> {
        let events = self.watches.waiting().remove(session);
        let id = || session.chars().take(50).collect();
        events.ok_or_else(|| DaemonError::NoWatch { id: id(), sandbox: self.name() })
    }
}

/// A random UUID (RFC 9562, version 4): the published clients take nothing else.
fn session_id() -> std::io::Result<String> {
    let mut bytes = [0; size_of::<u128>()];
    // So few bytes come whole or not at all (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let bits = u128::from_ne_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let digits = format!("{bits:032x}");
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Ok(parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_a_uuid() {
        for _ in 0..100 {
            let id = session_id().unwrap();
            let lengths: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
            assert!(id.as_bytes()[14] == b'4' && b"89ab".contains(&id.as_bytes()[19]), "{id}");
        }
    }
}
