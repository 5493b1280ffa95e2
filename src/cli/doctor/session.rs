//! What the user's login gives: directories, limits, cgroups, and whether it lasts.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::process::{Resource, geteuid, getrlimit};

use super::finding::Finding;
use super::kvm::name_of;

/// What the process of a machine may have open: above all 1,023 connections on vsock, with as many that are being made.
const OPEN_FILES: u64 = 4096;
/// By which a machine's use is limited.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

pub(super) fn check() -> Vec<Finding> {
    let uid = geteuid().as_raw();
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    let owner = runtime.as_ref().map(|path| path.metadata().ok().map(|found| (found.uid(), found.mode())));
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = name_of(&passwd, uid).map_or_else(|| uid.to_string(), str::to_owned);
    vec![
        runtime_directory(runtime.as_deref(), owner.flatten(), uid),
        directories(variable),
        lingering(
            Path::new("/run/systemd/system").exists(),
            Path::new("/var/lib/systemd/linger").join(&user).exists(),
        ),
        cgroup(delegated(uid).as_ref()),
        open_files(getrlimit(Resource::Nofile).maximum),
    ]
}

/// `found` is the directory's owner and mode, if it is there.
fn runtime_directory(path: Option<&Path>, found: Option<(u32, u32)>, uid: u32) -> Finding {
    const CHECK: &str = "session.runtime-dir";
    const REMEDY: &str = "Log in by a display manager, a console or ssh rather than by su or sudo, on a system with \
                          systemd or elogind: that makes the directory. Or use the one below /tmp.";
    let instead = format!("the socket is made in /tmp/voidrun-{uid}");
    let Some(path) = path else {
        return Finding::warning(CHECK, format!("XDG_RUNTIME_DIR is not set: {instead}"), REMEDY);
    };
    let shown = path.display();
    match found {
        _ if !path.is_absolute() => {
            Finding::warning(CHECK, format!("XDG_RUNTIME_DIR is {shown}, a relative path: {instead}"), REMEDY)
        }
        None => Finding::warning(CHECK, format!("{shown} is not there: {instead}"), REMEDY),
        Some((owner, _)) if owner != uid => {
            Finding::warning(CHECK, format!("{shown} belongs to user {owner}: {instead}"), REMEDY)
        }
        Some((_, mode)) if mode & 0o777 != 0o700 => Finding::warning(
            CHECK,
            format!("{shown} has mode {:04o} instead of 0700", mode & 0o777),
            format!("chmod 700 {shown}"),
        ),
        Some(_) => Finding::ok(CHECK, format!("{shown} is there, for this user alone")),
    }
}

/// XDG base directories, "Environment variables": relative paths are to be ignored.
fn directories(variable: impl Fn(&str) -> Option<OsString>) -> Finding {
    const CHECK: &str = "session.directories";
    let relative = |name: &&str| variable(name).is_some_and(|path| Path::new(&path).is_relative());
    let ignored: Vec<_> =
        ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"].into_iter().filter(relative).collect();
    let ignored = ignored.join(", ");
    if !ignored.is_empty() {
        let detail = format!("ignored, as a relative path: {ignored}");
        return Finding::warning(CHECK, detail, "Set it to an absolute path, or not at all.");
    }
    match variable("HOME") {
        Some(home) => Finding::ok(CHECK, format!("home is {}", Path::new(&home).display())),
        None => Finding::warning(
            CHECK,
            "HOME is not set",
            "Set HOME, or else XDG_CONFIG_HOME, XDG_STATE_HOME and VOIDRUN_HOME.",
        ),
    }
}

fn lingering(systemd: bool, enabled: bool) -> Finding {
    const CHECK: &str = "session.linger";
    if !systemd {
        Finding::ok(CHECK, "there is no systemd that ends what is running at logout")
    } else if enabled {
        Finding::ok(CHECK, "services go on after the last logout")
    } else {
        Finding::warning(CHECK, "the user's services end at the last logout", "loginctl enable-linger")
    }
}

/// What may be divided among cgroups of our own.
#[derive(Debug)]
struct Delegated {
    /// The path below the root of cgroups.
    cgroup: String,
    controllers: String,
}

/// The user's part of the tree: that of the user's systemd, else the one that this process is in, if we may write there.
fn delegated(uid: u32) -> Option<Delegated> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let root = unified(&mounts)?;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
    let manager = format!("/user.slice/user-{uid}.slice/user@{uid}.service");
    [manager, own].into_iter().find_map(|cgroup| {
        let dir = root.join(cgroup.trim_start_matches('/'));
        access(dir.join("cgroup.subtree_control"), Access::WRITE_OK).ok()?;
        access(dir.join("cgroup.procs"), Access::WRITE_OK).ok()?;
        Some(Delegated { controllers: std::fs::read_to_string(dir.join("cgroup.controllers")).ok()?, cgroup })
    })
}

/// Where cgroups of version 2 are mounted, by /proc/self/mountinfo.
fn unified(mounts: &str) -> Option<PathBuf> {
    let mut mounts = mounts.lines().filter_map(|line| line.split_once(" - "));
    let (left, _) = mounts.find(|(_, right)| right.starts_with("cgroup2 "))?;
    left.split(' ').nth(4).map(PathBuf::from)
}

fn cgroup(delegated: Option<&Delegated>) -> Finding {
    const CHECK: &str = "session.cgroup";
    const ENABLE: &str = "The cgroup above has to enable them, in its cgroup.subtree_control. Those that are mounted as \
                          version 1 are missing: boot with systemd.unified_cgroup_hierarchy=1.";
    const DELEGATE: &str = "sudo mkdir -p /etc/systemd/system/user@.service.d\n\
        printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf\n\
        sudo systemctl daemon-reload\nThen log out of all sessions and in again.";
    let Some(Delegated { cgroup, controllers }) = delegated else {
        return Finding::warning(
            CHECK,
            "no cgroup (version 2) is delegated to this user: machines are limited by their own size alone",
            "Log in on a system with systemd and unified cgroups (systemd.unified_cgroup_hierarchy=1).",
        );
    };
    let has = |name: &&str| controllers.split_whitespace().any(|controller| controller == *name);
    let lacks: Vec<_> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
    if lacks.is_empty() {
        Finding::ok(CHECK, format!("{cgroup} has {}", controllers.trim()))
    } else {
        let remedy = if cgroup.starts_with("/user.slice/") { DELEGATE } else { ENABLE };
        Finding::warning(CHECK, format!("{cgroup} lacks {}", lacks.join(", ")), remedy)
    }
}

/// A process may raise its limit up to the hard one, which is given here; none is no limit.
fn open_files(hard: Option<u64>) -> Finding {
    const CHECK: &str = "session.files";
    match hard {
        None => Finding::ok(CHECK, "no limit of open files"),
        Some(limit) if limit >= OPEN_FILES => {
            Finding::ok(CHECK, format!("up to {limit} open files a process"))
        }
        Some(limit) => Finding::warning(
            CHECK,
            format!("at most {limit} open files a process; a busy machine has up to {OPEN_FILES}"),
            "Raise the hard limit: `* hard nofile 524288` in /etc/security/limits.conf, or LimitNOFILE= of the service.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Status;

    #[test]
    fn runtime_directories() {
        let path = Path::new("/run/user/1000");
        let status = |path, found| runtime_directory(path, found, 1000).status;
        assert_eq!(status(Some(path), Some((1000, 0o40_700))), Status::Ok);
        assert_eq!(status(Some(path), Some((0, 0o40_700))), Status::Warning);
        assert_eq!(status(Some(path), None), Status::Warning);
        assert_eq!(status(Some(Path::new("run")), Some((1000, 0o40_700))), Status::Warning);
        assert!(runtime_directory(None, None, 1000).detail.contains("/tmp/voidrun-1000"));
        let open = runtime_directory(Some(path), Some((1000, 0o40_755)), 1000);
        assert_eq!(open.remedy.as_deref(), Some("chmod 700 /run/user/1000"));
    }

    #[test]
    fn variables() {
        let of = |set: &'static [(&str, &str)]| {
            directories(move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(of(&[("HOME", "/home/ann"), ("XDG_DATA_HOME", "/data")]).status, Status::Ok);
        assert_eq!(of(&[]).detail, "HOME is not set");
        let relative = of(&[("HOME", "/home/ann"), ("XDG_STATE_HOME", "state"), ("XDG_DATA_HOME", "d")]);
        assert_eq!(relative.detail, "ignored, as a relative path: XDG_DATA_HOME, XDG_STATE_HOME");
    }

    #[test]
    fn lasting() {
        assert_eq!(lingering(false, false).status, Status::Ok);
        assert_eq!(lingering(true, true).status, Status::Ok);
        assert_eq!(lingering(true, false).remedy.as_deref(), Some("loginctl enable-linger"));
    }

    #[test]
    fn cgroups() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(unified(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(unified("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);

        let delegated = |cgroup: &str, controllers: &str| Delegated {
            cgroup: cgroup.into(),
            controllers: controllers.into(),
        };
        let of = |controllers: &str| cgroup(Some(&delegated("/user.slice/x", controllers)));
        assert_eq!(of("cpuset cpu io memory pids\n").status, Status::Ok);
        let some = of("memory pids\n");
        assert_eq!((some.status, some.detail.as_str()), (Status::Warning, "/user.slice/x lacks cpu"));
        assert!(some.remedy.unwrap().contains("Delegate=cpu"));
        assert_eq!(of("cpuset memory pids").detail, "/user.slice/x lacks cpu");
        let elsewhere = cgroup(Some(&delegated("/", "pids")));
        assert!(elsewhere.remedy.unwrap().contains("unified_cgroup_hierarchy=1"));
        assert_eq!(cgroup(None).status, Status::Warning);
    }

    #[test]
    fn limits() {
        assert_eq!(open_files(None).status, Status::Ok);
        assert_eq!(open_files(Some(4096)).status, Status::Ok);
        assert_eq!(open_files(Some(4095)).status, Status::Warning);
    }
}
