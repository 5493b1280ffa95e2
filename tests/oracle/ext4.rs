//! An ext4 image, as e2fsprogs and the kernel see it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::command::{output, run, tool};

/// Fails unless `e2fsck` finds nothing at all.
pub fn assert_clean(when: &str, image: &Path) {
    let (ok, stdout, stderr) = output(tool("e2fsck").arg("-fn").arg(image).env("LC_ALL", "C"));
    // A problem that is not fixed ends with `? no`, some of which are too small to change the exit status.
    assert!(ok && !stdout.contains("? no"), "{when}: e2fsck -fn {}:\n{stdout}{stderr}", image.display());
}

/// A mounted image. Unmounted when dropped.
pub struct Mount {
    directory: TempDir,
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
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Unmounts, and fails when that fails.
    pub fn unmount(self) {
        run(tool("umount").arg(self.path()));
        std::mem::forget(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Not a panic: this may run while another unwinds.
        if !output(tool("umount").arg(self.directory.path())).0 {
            eprintln!("cannot unmount {}", self.directory.path().display());
        }
    }
}

/// Copies what the image has into `directory`, as an ordinary user can.
pub fn dump(image: &Path, directory: &Path) {
    let request = format!("rdump / {}", directory.display());
    run(tool("debugfs").args(["-R", &request]).arg(image));
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
