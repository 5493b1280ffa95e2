//! Tests that run guests. They need a KVM that can: where the machine's own cannot, they run in the lab.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod boot;
mod fork;
mod hostile;
mod process;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The guest's kernel: the one that `VOIDRUN_KERNEL` names, else what `kernels/build` makes.
fn guest_kernel() -> PathBuf {
    if let Some(path) = std::env::var_os("VOIDRUN_KERNEL") {
        return path.into();
    }
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/build");
    let output =
        Command::new(build).arg("guest").stderr(Stdio::inherit()).output().expect("running kernels/build");
    assert!(output.status.success(), "kernels/build: {}", output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}
