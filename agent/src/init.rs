//! PID 1's first duty: from the initramfs to the image's own file system with all that programs expect of a machine.
//!
//! The image may be anything, an empty one too: what is missing is made, on its disk.

use crate::kmsg;
use crate::network::{self, NetworkError};
use protocol::{CA_CERTIFICATES, Config};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Resource, Rlimit};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where the root disk is mounted before it becomes /.
const NEW_ROOT: &str = "/root-disk";

/// Where the commands' cgroups are made.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// What is bound into /etc.
const RUN: &str = "/run/voidrun";

/// Where images have the authorities that they trust: Debian and Alpine, Fedora, SUSE.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// In bytes; they have about 220,000.
const MAX_BUNDLE: u64 = 4 << 20;

/// Descriptors that the agent has, and a command begins with: five a stream. More costs programs that close all they could have.
const FILES: u64 = 1 << 16;

/// To what a command may raise that: what container engines give.
const MAX_FILES: u64 = 1 << 20;

/// Why the guest cannot come up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file system could not be mounted.
    #[error("cannot mount {what} on {target}")]
    Mount {
        /// Its device or type.
        what: String,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A file could not be read, written or made.
    #[error("{path}")]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// /config.json is not what [`Config`] is written as.
    #[error("/config.json")]
    Config(#[source] serde_json::Error),
    /// The root disk could not become /.
    #[error("cannot make the root disk /")]
    Root(#[source] Errno),
    /// The network could not be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The set-up of the process or the machine failed.
    #[error("{what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// Everything up to where commands can run.
pub fn run() -> Result<(), InitError> {
    let config = config()?;
    enter_root(&config)?;
    mount_system()?;
    links();
    sysctls();
    limits()?;
    hostname(&config)?;
    if let Some(given) = &config.ca_certificates {
        ca_certificates(given)?;
    }
    Ok(network::set_up(config.network.as_ref())?)
}

fn config() -> Result<Config, InitError> {
    match fs::read("/config.json") {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(InitError::Config),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(source) => Err(InitError::File { path: "/config.json".into(), source }),
    }
}

/// Makes the root disk /.
fn enter_root(config: &Config) -> Result<(), InitError> {
    // For the disk's own node; the image's /dev comes later.
    mount("devtmpfs", "devtmpfs", "/dev", MountFlags::NOSUID, "")?;
    mount(&config.root_device, "ext4", NEW_ROOT, MountFlags::NOATIME, "")?;
    // The initramfs is memory until its files are gone.
    for path in ["/init", "/config.json"] {
        drop(fs::remove_file(path));
    }
    // Not pivot_root(2): it refuses an initramfs. A busy /dev stays where nobody sees it.
    let _ = rustix::mount::unmount("/dev", rustix::mount::UnmountFlags::DETACH);
    rustix::process::chdir(NEW_ROOT).map_err(InitError::Root)?;
    rustix::mount::mount_move(".", "/").map_err(InitError::Root)?;
    rustix::process::chroot(".").map_err(InitError::Root)?;
    rustix::process::chdir("/").map_err(InitError::Root)
}

fn mount_system() -> Result<(), InitError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let device = MountFlags::NOSUID | MountFlags::NOEXEC;
    let shared = MountFlags::NOSUID | MountFlags::NODEV;
    mount("proc", "proc", "/proc", plain, "")?;
    mount("sysfs", "sysfs", "/sys", plain, "")?;
    mount("cgroup2", "cgroup2", CGROUPS, plain, "nsdelegate,memory_recursiveprot")?;
    mount("devtmpfs", "devtmpfs", "/dev", MountFlags::NOSUID, "mode=755")?;
    mount("devpts", "devpts", "/dev/pts", device, "gid=5,mode=620,ptmxmode=666")?;
    mount("tmpfs", "tmpfs", "/dev/shm", shared, "mode=1777")?;
    mount("tmpfs", "tmpfs", "/run", shared, "mode=755")?;
    // Container engines in the guest expect what systemd makes of /.
    rustix::mount::mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .map_err(|source| InitError::System { what: "cannot share the mounts below /", source })
}

/// Mounts a file system on a directory, which is made if it is missing.
fn mount(what: &str, kind: &str, target: &str, flags: MountFlags, data: &str) -> Result<(), InitError> {
    let error = |source| InitError::Mount { what: what.to_owned(), target: target.into(), source };
    match rustix::fs::mkdir(target, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => (),
        Err(errno) => return Err(error(errno)),
    }
    let data = std::ffi::CString::new(data).map_err(|_| error(Errno::INVAL))?;
    rustix::mount::mount(what, target, kind, flags, data.as_c_str()).map_err(error)
}

/// The names that shells and programs use for descriptors.
fn links() {
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("/proc/kcore", "/dev/core"),
    ] {
        drop(fs::remove_file(link));
        drop(symlink(target, link));
    }
    // Images come without it now and then; it is the one directory that every program takes for granted.
    if rustix::fs::mkdir("/tmp", Mode::from_raw_mode(0o1777)).is_ok() {
        drop(fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777)));
    }
}

/// Settings that a kernel may lack are left out: none of them decides whether the guest works.
fn sysctls() {
    for (name, value) in [
        ("fs/protected_hardlinks", "1"),
        ("fs/protected_symlinks", "1"),
        // ping without privileges, for every group
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ] {
        if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value) {
            kmsg::warning(format_args!("sysctl {name}: {error}"));
        }
    }
}

fn limits() -> Result<(), InitError> {
    let files = Rlimit { current: Some(FILES), maximum: Some(MAX_FILES) };
    rustix::process::setrlimit(Resource::Nofile, files)
        .map_err(|source| InitError::System { what: "cannot set the limit of open files", source })
}

/// The host name and the files in /etc that go with it. They lie in memory, so that the image's own are not changed.
fn hostname(config: &Config) -> Result<(), InitError> {
    let name = &config.hostname;
    rustix::system::sethostname(name.as_bytes())
        .map_err(|source| InitError::System { what: "cannot set the host name", source })?;
    fs::create_dir_all(RUN).map_err(|source| InitError::File { path: RUN.into(), source })?;
    bind("hostname", &format!("{name}\n"));
    let mut hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n");
    hosts.extend(config.hosts.iter().map(|(name, address)| format!("{address}\t{name}\n")));
    bind("hosts", &hosts);
    if !config.nameservers.is_empty() {
        let mut lines: Vec<_> =
            config.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if !config.search.is_empty() {
            lines.push(format!("search {}\n", config.search.join(" ")));
        }
        bind("resolv.conf", &lines.concat());
    }
    Ok(())
}

/// Writes the file that programs find by their environment: what the image trusts, and `given`.
fn ca_certificates(given: &str) -> Result<(), InitError> {
    let mut all = BUNDLES.iter().find_map(|path| read_bounded(path)).unwrap_or_default();
    if !all.is_empty() && !all.ends_with(b"\n") {
        all.push(b'\n');
    }
    all.extend_from_slice(given.as_bytes());
    fs::write(CA_CERTIFICATES, all).map_err(|source| InitError::File { path: CA_CERTIFICATES.into(), source })
}

/// A plain file of the image, if it is no longer than such files are.
fn read_bounded(path: &str) -> Option<Vec<u8>> {
    // Not to wait for what may lie there instead.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let meta = file.metadata().ok()?;
    let mut bytes = Vec::new();
    let plain = meta.is_file() && meta.len() <= MAX_BUNDLE;
    (plain && file.take(MAX_BUNDLE).read_to_end(&mut bytes).is_ok()).then_some(bytes)
}

/// Puts a file with this content over the one in /etc. An image where that cannot be done keeps its own.
fn bind(name: &str, content: &str) {
    let (file, target) = (Path::new(RUN).join(name), Path::new("/etc").join(name));
    let result = (|| {
        fs::write(&file, content)?;
        drop(fs::create_dir("/etc"));
        if target.is_symlink() && !target.exists() {
            // As where systemd-resolved was to be: the file that it points to is made by nobody here.
            fs::remove_file(&target)?;
        }
        if !target.exists() {
            fs::write(&target, "")?;
        }
        rustix::mount::mount_bind(&file, &target)?;
        std::io::Result::Ok(())
    })();
    if let Err(error) = result {
        kmsg::warning(format_args!("{}: {error}", target.display()));
    }
}
