//! Runs the tools that the tests need, and says which Debian package has one that is missing.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

/// Tool and package.
const PACKAGES: [(&str, &str); 8] = [
    ("umoci", "umoci"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("cp", "coreutils"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("mmdebstrap", "mmdebstrap"),
    ("bash", "bash"),
];

/// A command that is on the path of a login shell of root, too: Debian keeps `e2fsck` and `debugfs` in /sbin.
pub fn tool(name: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(name);
    command.env("PATH", path).stdin(Stdio::null());
    command
}

/// Runs `command` to a good end and returns its standard output.
pub fn run(command: &mut Command) -> String {
    let (ok, stdout, stderr) = output(command);
    assert!(ok, "{command:?} failed:\n{stderr}{stdout}");
    stdout
}

/// Success, standard output, standard error.
pub fn output(command: &mut Command) -> (bool, String, String) {
    let output = command.output().unwrap_or_else(|error| {
        let name = command.get_program();
        let package = PACKAGES.iter().find(|(tool, _)| OsStr::new(tool) == name).map(|(_, package)| package);
        match (error.kind(), package) {
            (ErrorKind::NotFound, Some(package)) => {
                panic!("{} is missing: install the Debian package {package}", name.display())
            }
            _ => panic!("{}: {error}", name.display()),
        }
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}
