//! The two ways from an OCI layout to a tree: voidrun, and umoci, which is the oracle.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::command::{run, tool};

/// An image in a store of its own.
pub struct Converted {
    _home: TempDir,
    /// The ext4 image.
    pub rootfs: PathBuf,
}

/// Pulls the layout's `latest` by the CLI into an empty store.
pub fn voidrun(layout: &Path) -> Converted {
    let home = crate::scratch();
    let cli = |arguments: &[&str]| {
        run(tool(env!("CARGO_BIN_EXE_voidrun"))
            .env("VOIDRUN_HOME", home.path())
            .arg("images")
            .args(arguments))
    };
    cli(&["pull", &format!("oci:{}:latest", layout.display()), "--name", "oracle"]);
    let inspected: serde_json::Value = serde_json::from_str(&cli(&["inspect", "oracle", "--json"])).unwrap();
    let rootfs = PathBuf::from(inspected["rootfs"].as_str().expect("inspect --json has a `rootfs`"));
    Converted { rootfs, _home: home }
}

/// Unpacks the layout's `latest` into `directory` by umoci, and returns the root of the tree.
pub fn umoci(layout: &Path, directory: &Path) -> PathBuf {
    let bundle = directory.join("bundle");
    let mut command = tool("umoci");
    command.arg("unpack").arg("--image").arg(format!("{}:latest", layout.display()));
    if !crate::is_root() {
        command.arg("--rootless");
    }
    run(command.arg(&bundle));
    bundle.join("rootfs")
}
