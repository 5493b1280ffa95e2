//! PID 1's first duty: from the initramfs to the image's own file system with all that programs expect of a machine.
//!
//! The image may be anything, an empty one too: what is missing is made, on its disk.

use crate::identity::{self, IdentityError};
use crate::{kmsg, power};
use protocol::Config;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Resource, Rlimit};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where the root disk is mounted before it becomes /.
const NEW_ROOT: &str = "/root-disk";

/// Where the commands' cgroups are made.
pub const CGROUPS: &str = "/sys/fs/cgroup";

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
    /// /config.json could not be read.
    #[error("/config.json")]
    File(#[source] std::io::Error),
    /// /config.json is not what [`Config`] is written as.
    #[error("/config.json")]
    Config(#[source] serde_json::Error),
    /// The root disk could not become /.
    #[error("cannot make the root disk /")]
    Root(#[source] Errno),
    /// The machine has not become what it is to be.
    #[error(transparent)]
    Identity(#[from] IdentityError),
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

/// Everything up to where commands can run. Returns what the machine is now.
pub fn run() -> Result<Config, InitError> {
    let config = config()?;
    enter_root(&config)?;
    mount_system()?;
    links();
    // The kernel counts ticks until it has a better clock, and those that a busy host is late with are lost.
    if let Err(error) = power::set_clock(None) {
        kmsg::warning(format_args!("the clock: {error}"));
    }
    sysctls();
    limits()?;
    identity::begin(&config)?;
    Ok(config)
}

fn config() -> Result<Config, InitError> {
    match fs::read("/config.json") {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(InitError::Config),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(InitError::File(error)),
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
