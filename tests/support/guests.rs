//! What tests with real guests share: a store with the images of the common one, and what a program has left.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a machine may take to die; far more than it does, also on an emulated CPU.
pub const DEATH: Duration = Duration::from_mins(1);

pub fn variable(name: &str) -> PathBuf {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.unwrap_or_else(|| panic!("{name} is not set: these tests are run by scripts/test")).into()
}

/// How often something is done.
pub fn count(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect(name))
}

/// A store with the images of the common one, and sandboxes of its own.
pub struct Store {
    /// Unmounted before its directory is removed.
    _disk: Option<SmallDisk>,
    dir: tempfile::TempDir,
}

impl Store {
    pub fn new() -> Self {
        Self::empty().sharing()
    }

    /// On a file system of its own of so many MiB.
    pub fn small(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { _disk: Some(SmallDisk::mount(dir.path(), mib)), dir }.sharing()
    }

    fn sharing(self) -> Self {
        for shared in ["blobs", "images", "refs", "store.json"] {
            symlink(variable("VOIDRUN_HOME").join(shared), self.path().join(shared)).unwrap();
        }
        self
    }

    /// Without images.
    pub fn empty() -> Self {
        Self { _disk: None, dir: tempfile::tempdir().unwrap() }
    }

    /// The same at another place.
    pub fn moved(self) -> Self {
        let other = Self::empty();
        std::fs::rename(self.path(), other.path()).unwrap();
        other
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file system of an image.
    pub fn rootfs(&self, image: &str) -> PathBuf {
        let inspected = self.command(&["images", "inspect", image, "--json"]).output().unwrap();
        let image: serde_json::Value = serde_json::from_str(&Ran::from(inspected).text()).unwrap();
        image["rootfs"].as_str().unwrap().into()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_voidrun"), arguments)
    }

    /// Of another program than ours.
    pub fn command_of(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.path())
            .env("VOIDRUN_HOME", self.path())
            .env("XDG_RUNTIME_DIR", self.path())
            .env("VOIDRUN_KERNEL", variable("VOIDRUN_KERNEL"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `voidrun run` to its end; nothing of it remains.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        let ran = Ran::from(self.start(arguments).wait_with_output().unwrap());
        self.is_clean();
        ran
    }

    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(&[&["run"], arguments].concat()).spawn().unwrap()
    }

    /// A run whose command has written the line `up`; the rest of its output.
    pub fn up(&self, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
        let mut child = self.start(arguments);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        if line != "up\n" {
            panic!("{line:?}: {:?}", child.wait_with_output());
        }
        (child, output)
    }

    pub fn sandboxes(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path().join("sandboxes")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[track_caller]
    pub fn is_clean(&self) {
        assert_eq!(self.sandboxes(), Vec::<PathBuf>::new());
    }

    /// The processes of its machines, whatever has become of their sandboxes.
    pub fn machines(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap();
        let processes = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let is_ours = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"voidrun\0vmm\0")
                && descriptors(*pid).iter().any(|descriptor| descriptor.starts_with(self.path()))
        };
        processes.filter(is_ours).collect()
    }

    /// The process of the only machine.
    pub fn machine(&self) -> OwnedFd {
        let [sandbox] = &self.sandboxes()[..] else { panic!("{:?}", self.sandboxes()) };
        let stream = UnixStream::connect(sandbox.join("control.sock")).unwrap();
        vmm::control::Client::new(stream, DEATH).unwrap().into_pidfd()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        end_daemon(self.path());
    }
}

/// Ends the daemon that a command has started for this store.
pub fn end_daemon(store: &Path) {
    let Ok(notice) = std::fs::read(store.join("daemon.lock")) else { return };
    let Ok(notice) = serde_json::from_slice::<serde_json::Value>(&notice) else { return };
    let pid = notice["pid"].as_i64().unwrap();
    // Killed, it has left its number, which may be another's by now.
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    if program.file_name().is_some_and(|name| name == "voidrun") {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).unwrap();
        dies(&process);
    }
}

/// What the descriptors of a process are; none where there is no such process. Those of a machine only root can see.
pub fn descriptors(pid: u32) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect()
}

/// A file system of the host that is soon full.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Of so many MiB, at a directory that there is.
    pub fn mount(path: &Path, mib: u32) -> Self {
        let size = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "small"]).arg(path).status();
        assert!(mount.unwrap().success(), "only root can mount");
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A directory that stays mounted cannot be removed. What has failed may still have something open in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Waits for the death of a machine's process.
#[track_caller]
pub fn dies(process: &OwnedFd) {
    let limit = Timespec { tv_sec: DEATH.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "the machine lives on");
}

/// What a run has left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).unwrap();
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }
}

impl Ran {
    /// It has printed this and nothing else.
    #[track_caller]
    pub fn prints(&self, text: &str) {
        let stdout = String::from_utf8_lossy(&self.stdout);
        assert_eq!((self.code, &*stdout, &*self.stderr), (Some(0), text, ""));
    }

    #[track_caller]
    pub fn text(self) -> String {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""));
        String::from_utf8(self.stdout).unwrap()
    }

    /// It ended with this code, and said all of `words` on standard error.
    #[track_caller]
    pub fn ends(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {self:?}");
        }
    }
}
