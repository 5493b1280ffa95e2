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
#[path = "../support/guests.rs"]
mod guests;
mod life;
mod machine;
mod streams;
mod terminal;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use guests::{DEATH, Ran, Store, count, dies, end_daemon, variable};

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
