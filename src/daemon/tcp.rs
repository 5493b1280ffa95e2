//! The API on TCP: on a loopback address alone, and for those alone who have the key.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::geteuid;
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ServeError;

/// In bytes, without the white space around it.
const KEY: std::ops::RangeInclusive<usize> = 16..=1024;
/// More of the file is not read, in bytes.
const MAX_FILE: u64 = 4096;

/// Where the API is served beside the Unix socket.
#[derive(Debug)]
pub(crate) struct Tcp {
    /// As [`loopback`] has it.
    pub(crate) address: SocketAddr,
    /// The key is what is in it, without the white space around it.
    pub(crate) key_file: PathBuf,
}

/// What a client has to know.
pub(crate) struct Key(String);

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("cannot read the key file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the key file {} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error(
        "the key file {} is not this user's alone (mode {mode:04o}): chmod 600, and make a new key if others have read it",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "the key file {}: the key has to be {} to {} visible ASCII characters, as `openssl rand -hex 32` makes one",
        .0.display(), KEY.start(), KEY.end()
    )]
    Key(PathBuf),
}

impl Key {
    pub(super) fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_owned(), source };
        // A pipe without a writer must not hold it up.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(KeyError::NotAFile(path.to_owned()));
        }
        let ours = [geteuid().as_raw(), 0].contains(&found.uid());
        if !ours || found.mode() & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode: found.mode() & 0o7777 });
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        let key = bytes.trim_ascii();
        let valid = bytes.len() as u64 <= MAX_FILE
            && KEY.contains(&key.len())
            && key.iter().all(u8::is_ascii_graphic);
        match std::str::from_utf8(key) {
            Ok(key) if valid => Ok(Self(key.to_owned())),
            _ => Err(KeyError::Key(path.to_owned())),
        }
    }

    /// Whether `given` is the key, in a time that tells nothing of it but its length.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }

    #[cfg(test)]
    pub(crate) fn of(key: &str) -> Self {
        Self(key.to_owned())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// Connections at once. Everybody on this machine can take them, so they are not those of the Unix socket.
const MAX_CONNECTIONS: usize = 256;

/// A TCP address that is listened at.
pub(super) struct Door {
    listener: TcpListener,
    key: Arc<Key>,
    places: Arc<Semaphore>,
}

impl Door {
    pub(super) async fn open(address: SocketAddr, key: Key) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Socket { action: "listen at", path: address.to_string(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        tracing::info!(url = %format_args!("http://{bound}"), "listens, for those who have the key");
        Ok(Self { listener, key: Arc::new(key), places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) })
    }

    /// A client, its place, and the key that it has to have.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, OwnedSemaphorePermit, Arc<Key>)> {
        // It is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = self.listener.accept().await?;
        // What is typed at a terminal is not kept waiting for the answer to what was typed before.
        let _ = stream.set_nodelay(true);
        Ok((stream, place, Arc::clone(&self.key)))
    }
}

/// An address that nobody but this machine can reach; port 0 is any that is free.
pub(crate) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "expected an address like 127.0.0.1:7070".to_owned())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err("others could reach it: it has to be of the loopback interface, as 127.0.0.1:PORT and [::1]:PORT are; \
         for clients elsewhere forward it, as `ssh -L` does"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:0", "127.9.9.9:7070", "[::1]:80"] {
            assert_eq!(loopback(good).unwrap().to_string(), good);
        }
        for (wrong, words) in [
            ("0.0.0.0:1", "loopback"),
            ("192.168.0.1:1", "ssh -L"),
            ("[::]:1", "loopback"),
            ("localhost:1", "like 127.0.0.1:7070"),
            ("127.0.0.1", "like 127.0.0.1:7070"),
        ] {
            let error = loopback(wrong).unwrap_err();
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }

    #[test]
    fn key_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let read = |content: &[u8], mode: u32| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Key::read(&path)
        };
        let key = read(b" 0123456789abcdef\n", 0o600).unwrap();
        assert!(key.is(b"0123456789abcdef"));
        assert!(!key.is(b"0123456789abcdeF") && !key.is(b"0123456789abcdef0") && !key.is(b""));
        assert_eq!(format!("{key:?}"), "Key");
        assert!(read(&[b'k'; 1024], 0o400).is_ok());
        for mode in [0o644, 0o640, 0o601] {
            assert!(
                matches!(read(b"0123456789abcdef", mode), Err(KeyError::Exposed { mode: found, .. }) if found == mode)
            );
        }
        for wrong in ["", "short", "0123456789 abcdef", "0123456789abcdé", &"k".repeat(1025)] {
            assert!(matches!(read(wrong.as_bytes(), 0o600), Err(KeyError::Key(_))), "{wrong:?}");
        }
        assert!(matches!(read(&[b' '; 5000], 0o600), Err(KeyError::Key(_))));
        assert!(matches!(Key::read(dir.path()), Err(KeyError::NotAFile(_))));
        assert!(matches!(Key::read(&dir.path().join("none")), Err(KeyError::Read { .. })));
    }
}
