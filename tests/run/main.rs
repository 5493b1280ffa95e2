//! `voidrun run` with real guests: needs a KVM that can run one, as `scripts/lab` has it.
//!
//! VOIDRUN_HOME is a store with the images `code` and `debian`, and VOIDRUN_KERNEL a guest kernel; `scripts/test` sees to both.
//! Each test has a store of its own that shares the images.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod agent;
mod command;
mod crash;
mod doctor;
mod guest;
mod life;
mod machine;
mod streams;
mod terminal;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// How long a machine may take to die; far more than it does, also on an emulated CPU.
const DEATH: Duration = Duration::from_mins(1);

fn variable(name: &str) -> PathBuf {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.unwrap_or_else(|| panic!("{name} is not set: these tests are run by scripts/test")).into()
}

/// How often something is done.
fn count(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect(name))
}

/// A store with the images of the common one, and sandboxes of its own.
struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        let store = Self::empty();
        for shared in ["blobs", "images", "refs", "store.json"] {
            symlink(variable("VOIDRUN_HOME").join(shared), store.path().join(shared)).unwrap();
        }
        store
    }

    /// Without images.
    fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file system of an image.
    fn rootfs(&self, image: &str) -> PathBuf {
        let inspected = self.command(&["images", "inspect", image, "--json"]).output().unwrap();
        let image: serde_json::Value = serde_json::from_str(&Ran::from(inspected).text()).unwrap();
        image["rootfs"].as_str().unwrap().into()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_voidrun"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.path())
            .env("VOIDRUN_HOME", self.path())
            .env("VOIDRUN_KERNEL", variable("VOIDRUN_KERNEL"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `voidrun run` to its end; nothing of it remains.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ran {
        let ran = Ran::from(self.start(arguments).wait_with_output().unwrap());
        self.is_clean();
        ran
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(&[&["run"], arguments].concat()).spawn().unwrap()
    }

    /// A run whose command has written the line `up`; the rest of its output.
    fn up(&self, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
        let mut child = self.start(arguments);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        if line != "up\n" {
            panic!("{line:?}: {:?}", child.wait_with_output());
        }
        (child, output)
    }

    fn sandboxes(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path().join("sandboxes")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[track_caller]
    fn is_clean(&self) {
        assert_eq!(self.sandboxes(), Vec::<PathBuf>::new());
    }

    /// The process of the only machine.
    fn machine(&self) -> OwnedFd {
        let [sandbox] = &self.sandboxes()[..] else { panic!("{:?}", self.sandboxes()) };
        let stream = UnixStream::connect(sandbox.join("control.sock")).unwrap();
        vmm::control::Client::new(stream, DEATH).unwrap().into_pidfd()
    }
}

/// Waits for the death of a machine's process.
#[track_caller]
fn dies(process: &OwnedFd) {
    let limit = Timespec { tv_sec: DEATH.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "the machine lives on");
}

/// What a run has left.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
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
    fn prints(&self, text: &str) {
        let stdout = String::from_utf8_lossy(&self.stdout);
        assert_eq!((self.code, &*stdout, &*self.stderr), (Some(0), text, ""));
    }

    #[track_caller]
    fn text(self) -> String {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""));
        String::from_utf8(self.stdout).unwrap()
    }

    /// It ended with this code, and said all of `words` on standard error.
    #[track_caller]
    fn ends(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {self:?}");
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of all values that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// An image of one static program and nothing else: an OCI layout, its layer uncompressed. Returns its reference.
fn scratch_image(dir: &Path) -> String {
    let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| std::fs::read(path).ok());
    let program = program.expect("busybox-static is installed, as scripts/lab needs it");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "busybox", &program[..]).unwrap();
    let layer = tar.into_inner().unwrap();

    let blobs = dir.join("scratch/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |media_type: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/busybox"], "Cmd": ["echo", "from scratch"], "Env": ["A=image"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    std::fs::write(dir.join("scratch/index.json"), index).unwrap();
    std::fs::write(dir.join("scratch/oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    format!("oci:{}", dir.join("scratch").display())
}

/// Lets everybody read what is there, whatever the umask.
fn readable(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
