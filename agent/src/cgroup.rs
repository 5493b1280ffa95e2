//! One cgroup v2 a command: what it may use, and how all of it is ended, however its processes forked and whatever sessions they made.

use protocol::Limits;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// cpu.max counts microseconds in each period of this length.
const CPU_PERIOD_US: u64 = 100_000;

/// What the names of the commands' cgroups begin with.
const PREFIX: &str = "exec-";

/// How long to wait for processes to stand still.
const FREEZING: Duration = Duration::from_millis(500);

/// The directory of the commands' cgroups.
#[derive(Debug)]
pub struct Cgroups {
    directory: PathBuf,
    next: AtomicU64,
    /// Whose processes were not all gone when their command ended.
    left: Mutex<Vec<Cgroup>>,
}

impl Cgroups {
    /// Makes cgroups in `directory`, itself a cgroup without processes or the root. Controllers that the kernel lacks are left out;
    /// a limit that needs one is then refused.
    pub fn new(directory: PathBuf) -> Self {
        for controller in ["cpu", "io", "memory", "pids"] {
            // One at a time: the kernel takes all or none of a line.
            drop(fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")));
        }
        Self { directory, next: AtomicU64::new(1), left: Mutex::default() }
    }

    /// A new cgroup with these limits. The error names the file that could not be written.
    pub(crate) fn create(&self, limits: &Limits) -> Result<Cgroup, (PathBuf, std::io::Error)> {
        let name = format!("{PREFIX}{}", self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.directory.join(name);
        fs::create_dir(&path).map_err(|error| (path.clone(), error))?;
        let cgroup = Cgroup { path };
        cgroup.limit(limits).inspect_err(|_| drop(cgroup.remove()))?;
        Ok(cgroup)
    }

    /// Halts all processes of all commands. Returns when they stand still, or soon: one that waits for a disk cannot be halted, and does
    /// nothing either.
    pub(crate) fn freeze(&self) {
        let all = self.each("1");
        let end = Instant::now() + FREEZING;
        let frozen = |path: &PathBuf| {
            let events = fs::read_to_string(path.join("cgroup.events"));
            // One without events is gone.
            events.map_or(true, |events| events.lines().any(|line| line == "frozen 1"))
        };
        while !all.iter().all(frozen) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) {
        self.each("0");
    }

    /// Writes to the file that halts a command, of each of them; where they are.
    fn each(&self, value: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let commands =
            entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        let paths: Vec<PathBuf> = commands.map(|entry| entry.path()).collect();
        for path in &paths {
            // It fails only when the cgroup is gone.
            drop(fs::write(path.join("cgroup.freeze"), value));
        }
        paths
    }

    /// Removes the cgroup of a command that has ended, at once or when its last process is gone.
    pub(crate) fn retire(&self, cgroup: &Cgroup) {
        let mut left = crate::lock(&self.left);
        left.push(cgroup.clone());
        left.retain(|cgroup| cgroup.remove().is_err());
    }
}

/// The cgroup of one command.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn limit(&self, limits: &Limits) -> Result<(), (PathBuf, std::io::Error)> {
        let write = |file: &str, value: String| {
            let path = self.path.join(file);
            fs::write(&path, value).map_err(|error| (path, error))
        };
        if let Some(mib) = limits.memory_mib {
            write("memory.max", mib.saturating_mul(1 << 20).to_string())?;
        }
        if let Some(pids) = limits.pids {
            write("pids.max", pids.to_string())?;
        }
        if let Some(millis) = limits.cpu_millis {
            write("cpu.max", format!("{} {CPU_PERIOD_US}", u64::from(millis) * CPU_PERIOD_US / 1000))?;
        }
        Ok(())
    }

    /// The directory, for clone3.
    pub(crate) fn open(&self) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(
            CWD,
            &self.path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// SIGKILL to every process in it and below it, those that are just forking too.
    pub(crate) fn kill(&self) {
        // It fails only when the cgroup is gone, and with it every process.
        drop(fs::write(self.path.join("cgroup.kill"), "1"));
    }

    /// A signal for every process in it and below it.
    pub(crate) fn signal(&self, signal: Signal) {
        let _: Result<(), _> = for_each_cgroup(&self.path, &mut |path| {
            let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                // It may be gone by now.
                let _ = rustix::process::kill_process(pid, signal);
            }
            Ok(())
        });
    }

    /// Whether the kernel killed one of its processes for want of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }

    /// An error while there are processes in it.
    fn remove(&self) -> std::io::Result<()> {
        // Most commands make none below theirs.
        if fs::remove_dir(&self.path).is_ok() {
            return Ok(());
        }
        match for_each_cgroup(&self.path, &mut |path| fs::remove_dir(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Calls `visit` for the cgroups below `path`, deepest first, then for `path`: a container engine in the guest makes cgroups of its own.
fn for_each_cgroup(path: &Path, visit: &mut impl FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for_each_cgroup(&entry.path(), visit)?;
        }
    }
    visit(path)
}
