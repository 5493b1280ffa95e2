//! An ext4 image, as e2fsprogs and the kernel see it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, SeekFrom, seek};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::command::{output, run, tool};
use crate::tree::Tree;

/// Fails unless `e2fsck` finds nothing at all.
pub fn assert_clean(when: &str, image: &Path) {
    let (ok, stdout, stderr) = output(tool("e2fsck").arg("-fn").arg(image).env("LC_ALL", "C"));
    // A problem that is not fixed ends with `? no`, some of which are too small to change the exit status.
    assert!(ok && !stdout.contains("? no"), "{when}: e2fsck -fn {}:\n{stdout}{stderr}", image.display());
}

/// A mounted image. Unmounted when dropped.
pub struct Mount {
    directory: TempDir,
    mounted: bool,
}

impl Mount {
    pub fn read_only(image: &Path) -> Self {
        Self::new(image, "loop,ro")
    }

    pub fn writable(image: &Path) -> Self {
        Self::new(image, "loop,rw")
    }

    fn new(image: &Path, options: &str) -> Self {
        let directory = crate::scratch();
        run(tool("mount").args(["-t", "ext4", "-o", options]).arg(image).arg(directory.path()));
        Self { directory, mounted: true }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Unmounts, and fails when that fails.
    pub fn unmount(mut self) {
        run(tool("umount").arg(self.path()));
        self.mounted = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Not a panic: this may run while another unwinds.
        if self.mounted && !output(tool("umount").arg(self.directory.path())).0 {
            eprintln!("cannot unmount {}", self.directory.path().display());
        }
    }
}

/// Copies what the image has into `directory`, as an ordinary user can. Such a user's umoci puts empty files in the place of
/// devices; so does this, where `expected` has one and the image has a device.
pub fn dump(image: &Path, directory: &Path, expected: &Tree) {
    let debugfs = |request: String| run(tool("debugfs").args(["-R", &request]).arg(image).env("LC_ALL", "C"));
    debugfs(format!("rdump / {}", directory.display()));
    for (path, node) in &expected.nodes {
        let copy = directory.join(path);
        if node.kind == FileType::RegularFile && node.size == 0 && copy.symlink_metadata().is_err() {
            let stat = debugfs(format!("stat \"/{}\"", path.display()));
            if stat.contains("Type: character special") || stat.contains("Type: block special") {
                let mode = stat.split_once("Mode:").unwrap().1.split_whitespace().next().unwrap();
                File::create(&copy).unwrap();
                fs::set_permissions(&copy, Permissions::from_mode(u32::from_str_radix(mode, 8).unwrap()))
                    .unwrap();
            }
        }
    }
}

/// A copy of the image that may be written to.
pub fn copy(image: &Path) -> (TempDir, PathBuf) {
    let directory = crate::scratch();
    let copy = directory.path().join("copy.ext4");
    run(tool("cp").args(["--sparse=always", "--reflink=auto", "--no-preserve=mode"]).arg(image).arg(&copy));
    (directory, copy)
}

/// A digest of the bytes, the same for a hole and for zeros. Only what is allocated is read.
pub fn fingerprint(image: &Path) -> String {
    const BLOCK: usize = 4096;
    let file = File::open(image).unwrap();
    let length = file.metadata().unwrap().len();
    let mut hasher = Sha256::new();
    hasher.update(length.to_le_bytes());
    let mut buffer = vec![0; 256 * BLOCK];
    let mut end = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
        end = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut at = start / BLOCK as u64 * BLOCK as u64;
        while at < end {
            let wanted = buffer.len().min((end.next_multiple_of(BLOCK as u64).min(length) - at) as usize);
            file.read_exact_at(&mut buffer[..wanted], at).unwrap();
            for block in buffer[..wanted].chunks(BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    hasher.update(at.to_le_bytes());
                    hasher.update(block);
                }
                at += block.len() as u64;
            }
        }
    }
    crate::layout::hex(hasher)
}
