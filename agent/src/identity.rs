//! Who the machine is: its host name and the files in /etc that tell of it, the authorities that it trusts, and eth0.
//!
//! It becomes somebody at boot. Restored, it may have to be somebody else, and then its commands have used those files: what they have
//! written there is the user's and stays, but for the names that only one machine may have.
//!
//! The files lie in memory and are bound over those in /etc, so that the image's own are not changed.

#[cfg(test)]
mod tests;

use crate::kmsg;
use crate::network::{self, NetworkError};
use protocol::{CA_CERTIFICATES, Config};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What is bound into /etc.
const RUN: &str = "run/voidrun";

/// Those of the files that are another in every machine, whatever its user has written there.
const UNIQUE: [&str; 2] = ["hostname", "machine-id"];

/// Where images have the authorities that they trust: Debian and Alpine, Fedora, SUSE.
const BUNDLES: [&str; 3] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/ssl/ca-bundle.pem",
];

/// What is read of a file, in bytes; bundles have about 220,000.
const MAX_FILE: u64 = 4 << 20;

/// Why the machine is not who it is to be.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel does not take the host name.
    #[error("cannot set the host name")]
    Name(#[source] Errno),
    /// A file could not be written, made or removed.
    #[error("{path}")]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The network could not be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Makes a machine that boots what `config` says.
pub fn begin(config: &Config) -> Result<(), IdentityError> {
    set_name(config)?;
    write_files(Path::new("/"), None, config)?;
    Ok(network::set_up(config.network.as_ref())?)
}

/// Makes a machine that is what `before` says what `config` says. After an error it is something in between; the same once more goes on
/// from there.
pub(crate) fn change(before: &Config, config: &Config) -> Result<(), IdentityError> {
    set_name(config)?;
    write_files(Path::new("/"), Some(before), config)?;
    Ok(network::change(before.network.as_ref(), config.network.as_ref())?)
}

fn set_name(config: &Config) -> Result<(), IdentityError> {
    rustix::system::sethostname(config.hostname.as_bytes()).map_err(IdentityError::Name)
}

/// The files in /etc, and what is in each; none: the image's own is not covered.
fn files(config: &Config) -> [(&'static str, Option<String>); 4] {
    let name = &config.hostname;
    let mut hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n");
    hosts.extend(config.hosts.iter().map(|(name, address)| format!("{address}\t{name}\n")));
    [
        ("hostname", Some(format!("{name}\n"))),
        ("machine-id", config.machine_id.as_ref().map(|id| format!("{id}\n"))),
        ("hosts", Some(hosts)),
        ("resolv.conf", resolv_conf(config)),
    ]
}

fn resolv_conf(config: &Config) -> Option<String> {
    if config.nameservers.is_empty() {
        return None;
    }
    let mut lines: Vec<_> =
        config.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !config.search.is_empty() {
        lines.push(format!("search {}\n", config.search.join(" ")));
    }
    Some(lines.concat())
}

/// Makes the files below `root` what `config` says; `before` is what they were written by, if they were.
fn write_files(root: &Path, before: Option<&Config>, config: &Config) -> Result<(), IdentityError> {
    let run = root.join(RUN);
    fs::create_dir_all(&run).map_err(|source| IdentityError::File { path: run, source })?;
    let written = before.map(files).unwrap_or_default();
    for ((name, content), (_, written)) in files(config).into_iter().zip(written) {
        // Compared where programs see it: whoever has unmounted it has a file of their own as well.
        let stays = |written: &String| {
            content.as_ref() == Some(written) || !holds(&root.join("etc").join(name), written)
        };
        if !UNIQUE.contains(&name) && written.as_ref().is_some_and(stays) {
            continue;
        }
        match content {
            Some(content) => put(root, name, &content)?,
            None if written.is_some() => give_back(root, name)?,
            None => {}
        }
    }
    let trusted = before.and_then(|before| before.ca_certificates.as_deref());
    match config.ca_certificates.as_deref() {
        given if given == trusted => Ok(()),
        Some(given) => write_certificates(root, given),
        None => remove(&inside(root, CA_CERTIFICATES)),
    }
}

/// Puts a file with this content over the one in /etc. An image where that cannot be done keeps its own.
fn put(root: &Path, name: &str, content: &str) -> Result<(), IdentityError> {
    let (file, target) = (root.join(RUN).join(name), root.join("etc").join(name));
    write(&file, content.as_bytes())?;
    if is_bound(&file, &target) {
        return Ok(());
    }
    let bind = || -> std::io::Result<()> {
        drop(fs::create_dir(root.join("etc")));
        if target.is_symlink() && !target.exists() {
            // As where systemd-resolved was to be: the file that it points to is made by nobody here.
            fs::remove_file(&target)?;
        }
        if !target.exists() {
            fs::write(&target, "")?;
        }
        let mut result = rustix::mount::mount_bind(&file, &target);
        if result == Err(Errno::NOENT) {
            // What is bound there was removed where it lay, and nothing can be mounted on that.
            rustix::mount::unmount(&target, UnmountFlags::DETACH)?;
            result = rustix::mount::mount_bind(&file, &target);
        }
        Ok(result?)
    };
    if let Err(error) = bind() {
        kmsg::warning(format_args!("{}: {error}", target.display()));
    }
    Ok(())
}

/// Undoes [`put`]: the image has its own again.
fn give_back(root: &Path, name: &str) -> Result<(), IdentityError> {
    let (file, target) = (root.join(RUN).join(name), root.join("etc").join(name));
    if is_bound(&file, &target) {
        // A program may have it open.
        rustix::mount::unmount(&target, UnmountFlags::DETACH)
            .map_err(|errno| IdentityError::File { path: target, source: errno.into() })?;
    }
    remove(&file)
}

/// Writes the file that programs find by their environment: what the image trusts, and `given`.
fn write_certificates(root: &Path, given: &str) -> Result<(), IdentityError> {
    let mut all = BUNDLES.iter().find_map(|path| read_bounded(&root.join(path))).unwrap_or_default();
    if !all.is_empty() && !all.ends_with(b"\n") {
        all.push(b'\n');
    }
    all.extend_from_slice(given.as_bytes());
    write(&inside(root, CA_CERTIFICATES), &all)
}

/// A path of the guest below `root`.
fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Whether the one file is bound over the other: whoever looks at this one sees that one.
fn is_bound(file: &Path, target: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((identity(file), identity(target)), (Ok(file), Ok(target)) if file == target)
}

/// Whether a file has this content.
fn holds(path: &Path, content: &str) -> bool {
    read_bounded(path).is_some_and(|bytes| bytes == content.as_bytes())
}

/// A plain file, if it is no longer than such files are.
fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    // Not to wait for what may lie there instead.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let meta = file.metadata().ok()?;
    let mut bytes = Vec::new();
    let plain = meta.is_file() && meta.len() <= MAX_FILE;
    (plain && file.take(MAX_FILE).read_to_end(&mut bytes).is_ok()).then_some(bytes)
}

/// Writes a file in memory in its place: what is bound somewhere is the file, not its name.
fn write(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    // Neither to wait for what may lie there instead, nor to write to what that points to.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(flags.bits().cast_signed());
    options
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|source| IdentityError::File { path: path.into(), source })
}

fn remove(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(IdentityError::File { path: path.into(), source })
        }
        _ => Ok(()),
    }
}
