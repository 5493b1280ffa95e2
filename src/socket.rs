//! Where the daemon listens: one socket a store, in a directory that is this user's alone. Clients learn of it from the
//! store's lock, see [`crate::lock`].

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rootfs_builder::image::Digest;
use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;

use crate::config::Config;

/// The place of a daemon's socket.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    name: String,
    /// The directory itself: a way to the socket that is short whatever the path (unix(7): 107 bytes).
    fd: OwnedFd,
}

/// A directory that no socket can be in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("cannot use the directory {} for the daemon's socket", dir.display())]
    Io { dir: PathBuf, source: io::Error },
    #[error(
        "the directory {} for the daemon's socket is not this user's alone: it has to be a directory, owned by user {uid}, with \
         mode 0700; remove it, or set XDG_RUNTIME_DIR", dir.display()
    )]
    Foreign { dir: PathBuf, uid: u32 },
}

impl Place {
    /// The one of the store which `config` names: `voidrun.sock` for the default one, a name of its own for any other. The
    /// directory is made where it is missing.
    pub(crate) fn of(config: &Config) -> Result<Self, PlaceError> {
        let dir = directory(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
        let name = socket_name(&config.home.value, std::env::var_os("HOME").map(PathBuf::from));
        let failed = |source| PlaceError::Io { dir: dir.clone(), source };
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        let uid = geteuid().as_raw();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&dir, flags, Mode::empty()) {
            Ok(fd) => fd,
            // A symbolic link, or a file.
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return Err(PlaceError::Foreign { dir, uid });
            }
            Err(e) => return Err(failed(e.into())),
        };
        let found = rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?;
        if found.st_uid != uid || found.st_mode & 0o077 != 0 {
            return Err(PlaceError::Foreign { dir, uid });
        }
        Ok(Self { dir, name, fd })
    }

    /// Where a daemon says that it listens.
    pub(crate) fn at(socket: &Path) -> Result<Self, PlaceError> {
        let dir = socket.parent().unwrap_or(Path::new("/")).to_owned();
        let name = socket.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&dir, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { dir, name, fd }),
            Err(e) => Err(PlaceError::Io { dir, source: e.into() }),
        }
    }

    /// For people, and for other processes.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// For calls: the path as the kernel takes it.
    pub(crate) fn address(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{}", self.fd.as_raw_fd(), self.name).into()
    }

    /// A file beside the socket: its lock while a daemon is started.
    pub(crate) fn start_lock(&self) -> PathBuf {
        self.dir.join(format!("{}.start", self.name))
    }
}

/// The runtime directory where it is there and this user's, else one in /tmp.
fn directory(runtime: Option<PathBuf>) -> PathBuf {
    let uid = geteuid().as_raw();
    let usable = |path: &PathBuf| path.is_absolute() && path.metadata().is_ok_and(|found| found.uid() == uid);
    match runtime.filter(usable) {
        Some(runtime) => runtime.join("voidrun"),
        None => format!("/tmp/voidrun-{uid}").into(),
    }
}

/// The default store is where it is when nobody says otherwise, whoever names it.
fn socket_name(store: &Path, user_home: Option<PathBuf>) -> String {
    let store = real(store);
    if user_home.is_some_and(|home| real(&home.join(".local/share/voidrun")) == store) {
        return "voidrun.sock".to_owned();
    }
    let digits = Digest::of(store.as_os_str().as_encoded_bytes()).hex();
    format!("voidrun-{}.sock", &digits[..12])
}

/// The path without links and dots; the same before and after the directory is made.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = path.ancestors().find_map(|dir| {
        let real = std::fs::canonicalize(dir).ok()?;
        // `join` with nothing would add a slash.
        Some(if dir == path { real } else { real.join(path.strip_prefix(dir).ok()?) })
    });
    real.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_runtime_directory() {
        let uid = geteuid().as_raw();
        let other = PathBuf::from(format!("/tmp/voidrun-{uid}"));
        assert_eq!(directory(None), other);
        assert_eq!(directory(Some("relative".into())), other);
        assert_eq!(directory(Some("/nonexistent".into())), other);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory(Some(dir.path().into())), dir.path().join("voidrun"));
    }

    #[test]
    fn stores_have_sockets_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let name = |path: &Path| socket_name(path, Some(dir.path().into()));
        let (a, b) = (name(dir.path()), name(&dir.path().join("x")));
        assert!(a != b && a.starts_with("voidrun-") && a.len() == 25, "{a}");
        assert_eq!(a, name(&dir.path().join(".")));
        // The same before it is made, also by way of a link.
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert_eq!(b, name(&dir.path().join("link/x")));
        std::fs::create_dir(dir.path().join("x")).unwrap();
        assert_eq!(b, name(&dir.path().join("x")));

        let default = dir.path().join(".local/share/voidrun");
        for path in [&default, &dir.path().join("link/.local/share/voidrun")] {
            assert_eq!(name(path), "voidrun.sock");
        }
        assert_ne!(socket_name(&default, Some("/elsewhere".into())), "voidrun.sock");
        assert_ne!(socket_name(&default, None), "voidrun.sock");
    }
}
