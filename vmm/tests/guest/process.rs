//! A machine's process, started as its launcher does it: a fork with the descriptors at their numbers, and nothing else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use vmm::control::Client;
use vmm::exit::{Exit, ExitReason};
use vmm::snapshot::{inspect, verify};
use vmm::spec::{Cpus, DiskFds, Fds, MachineSpec, MemoryMib, SnapshotFds, VERSION};

use crate::guest_kernel;

/// What no machine of one round takes, on the slowest host.
pub(crate) const DEADLINE: Duration = Duration::from_mins(3);
/// For one answer on a socket.
pub(crate) const ANSWER: Duration = Duration::from_mins(1);

/// What differs between the machines of the tests.
pub(crate) struct Launch<'a> {
    pub kernel: &'a Path,
    /// What it goes on from instead of booting the kernel, and whether others do as well.
    pub snapshot: Option<(&'a Path, bool)>,
    /// What that is over.
    pub base: Option<&'a Path>,
    /// Which pages of it are copied ahead.
    pub touched: Option<&'a Path>,
    pub cmdline: &'a str,
    pub cpus: u8,
    /// Base and diff.
    pub disk: Option<(&'a Path, &'a Path)>,
    pub boot_timeout: Duration,
    pub ttl: Option<Duration>,
}

/// A machine's process.
pub(crate) struct Process {
    pidfd: OwnedFd,
    pid: libc::pid_t,
    directory: tempfile::TempDir,
    /// When it must have ended: it ends itself before, unless it hangs.
    deadline: Instant,
    /// The agent's place: whoever is joined to it is not read from.
    _ready: UnixStream,
    owner: Option<UnixStream>,
}

/// How a process has ended.
#[derive(Debug)]
pub(crate) struct End {
    pub exit: Exit,
    pub status: ExitStatus,
    pub stderr: String,
}

impl Launch<'_> {
    pub(crate) fn start(&self) -> Process {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create_new(directory.path().join(name)).unwrap();
        let listener = |name: &str| UnixListener::bind(directory.path().join(name)).unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let (ready, its_ready) = UnixStream::pair().unwrap();
        let (owner, its_owner) = UnixStream::pair().unwrap();
        let mut parts: Vec<OwnedFd> = vec![
            kvm.into(),
            match self.snapshot {
                None => File::open(self.kernel),
                Some((snapshot, shared)) => File::options().read(true).write(!shared).open(snapshot),
            }
            .unwrap()
            .into(),
            listener("control").into(),
            listener("vsock").into(),
            its_ready.into(),
            its_owner.into(),
            file("exit.json").into(),
        ];
        if let Some((base, diff)) = self.disk {
            parts.push(File::open(base).unwrap().into());
            parts.push(File::options().read(true).write(true).open(diff).unwrap().into());
        }
        let [base, touched] = [self.base, self.touched].map(|file| {
            parts.push(File::open(file?).unwrap().into());
            Some(3 + parts.len() as RawFd)
        });
        let spec = MachineSpec {
            version: VERSION,
            id: "test".to_owned(),
            cpus: Cpus::try_from(self.cpus).unwrap(),
            memory: MemoryMib::try_from(128).unwrap(),
            cmdline: self.cmdline.to_owned(),
            fds: Fds {
                kvm: 4,
                kernel: self.snapshot.is_none().then_some(5),
                snapshot: self.snapshot.map(|(_, shared)| SnapshotFds { file: 5, base, shared, touched }),
                initramfs: None,
                disk: self.disk.map(|_| DiskFds { base: 11, lower: None, diff: 12 }),
                lock: None,
                control: 6,
                vsock: 7,
                ready: 8,
                exit: Some(10),
                owner: Some(9),
                ports: Vec::new(),
            },
            network: Some(net::engine::Config::default()),
            boot_timeout_ms: self.boot_timeout.as_millis() as u64,
            ttl_ms: self.ttl.map(|ttl| ttl.as_millis() as u64),
            idle_ms: None,
        };
        let mut json = tempfile::tempfile().unwrap();
        json.write_all(&serde_json::to_vec(&spec).unwrap()).unwrap();
        std::io::Seek::rewind(&mut json).unwrap();
        parts.insert(0, json.into());
        let stderr = file("stderr");

        // SAFETY: the child calls nothing that another thread of this process could hold a lock for but malloc, which the C
        // library makes usable again.
        let pid = match unsafe { libc::fork() } {
            -1 => panic!("{}", std::io::Error::last_os_error()),
            0 => become_machine(parts, stderr),
            pid => pid,
        };
        // SAFETY: the child has not been waited for, so that the number is its own.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(pidfd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: it has just been opened.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) };
        Process {
            pidfd,
            pid,
            directory,
            deadline: Instant::now() + self.boot_timeout + ANSWER,
            _ready: ready,
            owner: Some(owner),
        }
    }
}

/// Puts `parts` at the numbers from 3 on. A panic, in whatever thread, ends the process as such.
fn become_machine(parts: Vec<OwnedFd>, stderr: File) -> ! {
    const PANICKED: i32 = 101;
    // SAFETY: dup2 and fcntl touch no memory. What had the numbers before is the parent's, and is not used again here.
    unsafe {
        libc::dup2(stderr.as_raw_fd(), libc::STDERR_FILENO);
        let high: Vec<RawFd> = parts
            .into_iter()
            .map(|part| libc::fcntl(part.into_raw_fd(), libc::F_DUPFD_CLOEXEC, 500))
            .collect();
        for (number, fd) in (3..).zip(high) {
            libc::dup2(fd, number);
        }
    }
    std::mem::forget(stderr);
    std::panic::set_hook(Box::new(|info| {
        let _ = writeln!(std::io::stderr(), "{info}");
        // SAFETY: ends the process without the test harness, which belongs to the parent.
        unsafe { libc::_exit(PANICKED) }
    }));
    let code = u8::from(vmm::process::main() != std::process::ExitCode::SUCCESS);
    // SAFETY: as above.
    unsafe { libc::_exit(code.into()) }
}

impl Process {
    /// A client of its control socket; `None` once it has ended.
    pub(crate) fn control(&self) -> Option<Client> {
        Client::new(UnixStream::connect(self.directory.path().join("control")).ok()?, ANSWER).ok()
    }

    /// A connection to its vsock socket; `None` once it has ended.
    pub(crate) fn vsock(&self) -> Option<UnixStream> {
        let stream = UnixStream::connect(self.directory.path().join("vsock")).ok()?;
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.set_write_timeout(Some(ANSWER)).unwrap();
        Some(stream)
    }

    /// Hangs up as the process's owner.
    pub(crate) fn disown(&mut self) {
        self.owner = None;
    }

    /// Whether the process ends within `time`.
    pub(crate) fn ends_within(&self, time: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&raw mut poll, 1, time.as_millis() as i32) } {
            -1 => panic!("{}", std::io::Error::last_os_error()),
            ready => ready == 1,
        }
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// The process does not end in time, panicked, was killed by a signal, or has not said why it has ended.
    pub(crate) fn end(mut self) -> End {
        let in_time = self.ends_within(self.deadline.saturating_duration_since(Instant::now()));
        let status = self.reap();
        let read = |name: &str| std::fs::read_to_string(self.directory.path().join(name)).unwrap();
        let (stderr, exit) = (read("stderr"), read("exit.json"));
        assert!(in_time, "the machine does not end: {stderr}");
        assert!(status.signal().is_none() && status.code() < Some(2), "{status}: {stderr}");
        let exit =
            serde_json::from_str(&exit).unwrap_or_else(|e| panic!("exit.json: {e}: {exit:?}; {stderr}"));
        End { exit, status, stderr }
    }

    /// Kills it if it has not ended.
    fn reap(&mut self) -> ExitStatus {
        let mut status = 0;
        // SAFETY: the process has not been waited for, so that the number is its own.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, &raw mut status, 0);
        }
        self.pid = 0;
        ExitStatus::from_raw(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.pid != 0 {
            self.reap();
        }
    }
}

const CMDLINE: &str = "pci=off quiet loglevel=1 reboot=k panic=-1 earlyprintk=serial,0x3f8,nocfg,keep";

fn boot(kernel: &Path) -> Process {
    launch(kernel, CMDLINE, None).start()
}

fn launch<'a>(kernel: &'a Path, cmdline: &'a str, snapshot: Option<(&'a Path, bool)>) -> Launch<'a> {
    let (base, touched, disk, ttl) = (None, None, None, None);
    Launch { kernel, snapshot, base, touched, cmdline, cpus: 2, disk, boot_timeout: DEADLINE, ttl }
}

#[test]
fn a_kernel_without_a_root_ends_in_a_panic_that_is_told() {
    let end = boot(&guest_kernel()).end();
    assert!(end.status.success(), "{end:?}");
    let ExitReason::KernelPanic { message } = &end.exit.reason else { panic!("{end:?}") };
    assert!(message.starts_with("VFS: Unable to mount root fs"), "{end:?}");
    assert!(end.exit.console.contains(message.as_str()), "{end:?}");
    assert_eq!(end.stderr, "");
}

#[test]
fn a_machine_without_an_owner_ends() {
    let mut process = boot(&guest_kernel());
    process.control().expect("it runs").status().unwrap();
    process.disown();
    assert_eq!(process.end().exit.reason, ExitReason::Killed);
}

#[test]
fn what_is_no_kernel_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let end = boot(file.path()).end();
    assert_eq!(end.status.code(), Some(1));
    let ExitReason::Failed { message } = &end.exit.reason else { panic!("{end:?}") };
    assert!(message.contains("neither an ELF file nor a bzImage"), "{end:?}");
    assert!(end.stderr.contains(message.as_str()), "{end:?}");
}

/// The kernel's panic for want of a root is enough of a guest: without `panic=` it stands there for good.
#[test]
fn any_number_of_machines_go_on_from_a_shared_snapshot() {
    let kernel = guest_kernel();
    let first = launch(&kernel, "pci=off quiet loglevel=1", None).start();
    let mut control = first.control().expect("it runs");
    control.pause().unwrap();
    let snapshot = tempfile::NamedTempFile::new().unwrap();
    control.save(snapshot.as_file().as_fd()).unwrap();
    assert_eq!(verify(snapshot.as_file()).unwrap().cpus.get(), 2);
    drop(first);

    let from = |shared| launch(&kernel, "", Some((snapshot.path(), shared))).start();
    let runs = |process: &Process| {
        let control = process.control();
        let said = || std::fs::read_to_string(process.directory.path().join("stderr")).unwrap();
        let mut control = control.unwrap_or_else(|| panic!("{}", said()));
        assert!(!control.status().unwrap().paused);
    };
    let clones = [from(true), from(true), from(true)];
    clones.iter().for_each(runs);
    // One of them, saved in turn: most of its RAM is the snapshot's file still.
    let mut control = clones[0].control().unwrap();
    control.pause().unwrap();
    let again = tempfile::NamedTempFile::new().unwrap();
    control.save(again.as_file().as_fd()).unwrap();
    assert!(verify(again.as_file()).unwrap().has_base);
    let over = launch(&kernel, "", Some((again.path(), true)));
    runs(&Launch { base: Some(snapshot.path()), ..over }.start());
    drop(clones);
    verify(snapshot.as_file()).unwrap();
    assert!(!inspect(snapshot.as_file()).unwrap().used);

    let alone = from(false);
    runs(&alone);
    drop(alone);
    assert!(inspect(snapshot.as_file()).unwrap().used);
    let end = from(true).end();
    let ExitReason::Failed { message } = &end.exit.reason else { panic!("{end:?}") };
    assert!(message.contains("a machine has gone on from this snapshot already"), "{end:?}");
}

/// Of the steps by which a machine goes on from a snapshot, up to its running vCPUs, when each is done.
#[test]
#[ignore = "it measures: scripts/bench restore"]
fn steps_of_a_restore() {
    let runs: usize = std::env::var("VOIDRUN_RUNS").map_or(5, |runs| runs.parse().unwrap());
    let kernel = guest_kernel();
    let first = launch(&kernel, "pci=off quiet loglevel=1", None).start();
    let mut control = first.control().expect("it runs");
    // What a kernel touches at first.
    std::thread::sleep(Duration::from_secs(2));
    control.pause().unwrap();
    let snapshot = tempfile::NamedTempFile::new().unwrap();
    control.save(snapshot.as_file().as_fd()).unwrap();
    drop(first);
    let from = |touched| Launch { touched, ..launch(&kernel, "", Some((snapshot.path(), true))) }.start();
    // As many as of a guest with an agent that has run a command, nearly.
    let saved = saved_pages(snapshot.as_file());
    let touched = touched(&saved.iter().take(4_000).copied().collect());
    println!(
        "{} pages, up to 4,000 of them copied ahead; in ms, least, median and most of {runs}:",
        saved.len()
    );
    let mut steps: Vec<(String, Vec<u64>)> = Vec::new();
    for _ in 0..runs {
        let next = from(Some(touched.path()));
        for (index, (step, us)) in next.control().unwrap().metrics().unwrap().start.into_iter().enumerate() {
            if steps.len() == index {
                steps.push((step, Vec::new()));
            }
            steps[index].1.push(us);
        }
    }
    for (step, mut us) in steps {
        us.sort_unstable();
        let [least, median, most] = [0, us.len() / 2, us.len() - 1].map(|at| us[at] as f64 / 1000.0);
        println!("{step:<8} {least:7.2} {median:7.2} {most:7.2}");
    }
}

/// The pages in a file of touched ones.
fn pages(file: &File) -> BTreeSet<u32> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let words: Vec<u32> =
        bytes[16..].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    words.chunks(2).flat_map(|run| run[0]..run[0] + run[1]).collect()
}

/// A file of touched ones.
fn touched(pages: &BTreeSet<u32>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = b"VOIDPAGE\x01\0\0\0".to_vec();
    bytes.extend((pages.len() as u32).to_le_bytes());
    bytes.extend(pages.iter().flat_map(|page| [*page, 1]).flat_map(u32::to_le_bytes));
    file.as_file().write_all_at(&bytes, 0).unwrap();
    file
}

/// The pages of RAM that are in a snapshot.
fn saved_pages(snapshot: &File) -> BTreeSet<u32> {
    let number = |at| {
        let mut bytes = [0; 8];
        snapshot.read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    };
    let (pages_len, mut json) = (number(16), vec![0; number(32) as usize]);
    snapshot.read_exact_at(&mut json, 4096 + pages_len).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let runs: Vec<(u32, u32)> = serde_json::from_value(json["runs"].clone()).unwrap();
    runs.into_iter().flat_map(|(first, count)| first..first + count).collect()
}

#[test]
fn pages_that_one_machine_has_touched_are_copied_ahead_for_the_next() {
    let kernel = guest_kernel();
    let booted = launch(&kernel, "pci=off quiet loglevel=1", None).start();
    let mut control = booted.control().expect("it runs");
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = control.touched(file.as_file().as_fd()).unwrap_err().to_string();
    assert!(refused.contains("was booted"), "{refused}");
    control.pause().unwrap();
    let snapshot = tempfile::NamedTempFile::new().unwrap();
    control.save(snapshot.as_file().as_fd()).unwrap();
    drop(booted);

    let from = |touched| Launch { touched, ..launch(&kernel, "", Some((snapshot.path(), true))) }.start();
    let told = |process: &Process| {
        let file = tempfile::NamedTempFile::new().unwrap();
        process.control().expect("it runs").touched(file.as_file().as_fd()).unwrap();
        file
    };
    let first = from(None);
    let file = told(&first);
    let of_the_first = pages(file.as_file());
    assert!(!of_the_first.is_empty());
    // Some of the snapshot's that it would hardly come to by itself.
    let saved = saved_pages(snapshot.as_file());
    let more = saved.iter().rev().filter(|page| !of_the_first.contains(page)).take(1_000).copied().collect();
    let all: BTreeSet<u32> = &of_the_first | &more;
    let with_more = touched(&all);

    let fresh = pages(told(&from(None)).as_file());
    for (file, copied) in [(&file, &of_the_first), (&with_more, &all)] {
        let next = from(Some(file.path()));
        let found = pages(told(&next).as_file());
        assert!(found.is_superset(copied), "{} of {}", found.intersection(copied).count(), copied.len());
        let mut control = next.control().unwrap();
        assert!(!control.status().unwrap().paused);
        // What it has become is sound.
        control.pause().unwrap();
        let again = tempfile::NamedTempFile::new().unwrap();
        control.save(again.as_file().as_fd()).unwrap();
        verify(again.as_file()).unwrap();
        control.kill().unwrap();
        drop(control);
        assert_eq!(next.end().stderr, "");
    }
    assert!(!fresh.is_superset(&all), "{} of {}", fresh.intersection(&all).count(), all.len());

    let next = from(Some(&kernel));
    next.control().expect("it runs all the same").kill().unwrap();
    let end = next.end();
    assert!(end.status.success(), "{end:?}");
    assert!(
        end.stderr.contains("pages are not copied ahead: the file of touched pages is of another form"),
        "{end:?}"
    );
}
