//! The guest kernel that a release carries in its binary, compressed by build.rs. A machine gets its kernel as a file, so it
//! is unpacked into the store, once: `kernels/<sha256>/vmlinux`.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rootfs_builder::image::Digest;
use rustix::fs::{FlockOperation, MemfdFlags, flock, memfd_create};

use super::kernel::{Kernel, KernelError};

/// This binary's, if it was built with one.
pub(super) static EMBEDDED: Option<Embedded<'static>> = include!(concat!(env!("OUT_DIR"), "/kernel.rs"));

/// The file system's blocks; what is smaller is no hole.
const BLOCK: usize = 4096;

/// A compressed kernel.
pub(super) struct Embedded<'a> {
    /// As one frame of zstd.
    pub(super) zstd: &'a [u8],
    /// Of the unpacked file, in hexadecimal.
    pub(super) sha256: &'a str,
    /// Of the unpacked file, in bytes.
    pub(super) size: usize,
}

impl Embedded<'_> {
    fn directory(&self, store: &Path) -> PathBuf {
        store.join("kernels").join(self.sha256)
    }

    fn path(&self, store: &Path) -> PathBuf {
        self.directory(store).join("vmlinux")
    }

    /// The file in the store at `store`, if it is there. It is never there in part, but somebody else may have written to it.
    fn unpacked(&self, store: &Path) -> Option<Kernel> {
        let path = self.path(store);
        let file = File::open(&path).ok()?;
        let found = file.metadata().ok()?;
        (found.is_file() && found.len() == self.size as u64).then_some(Kernel { file, path, embedded: true })
    }

    /// The kernel in the store at `store`, unpacked if it is not there yet. Several processes may do so at once.
    pub(super) fn in_store(&self, store: &Path) -> Result<Kernel, KernelError> {
        if let Some(kernel) = self.unpacked(store) {
            return Ok(kernel);
        }
        let directory = self.directory(store);
        let failed = |source| KernelError::Unpack { path: self.path(store), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let lock = File::open(&directory).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        // Whoever had the lock before has done it.
        if let Some(kernel) = self.unpacked(store) {
            return Ok(kernel);
        }
        let content = self.decompress()?;
        write(&directory, &self.path(store), &content).map_err(failed)?;
        self.unpacked(store).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
    }

    /// The kernel in the store at `store`, or in memory if it is not there; the store stays as it is.
    pub(super) fn in_memory(&self, store: &Path) -> Result<Kernel, KernelError> {
        if let Some(kernel) = self.unpacked(store) {
            return Ok(kernel);
        }
        let content = self.decompress()?;
        let failed = |source| KernelError::Unpack { path: "memory".into(), source };
        let mut file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?);
        file.write_all(&content).map_err(failed)?;
        Ok(Kernel { file, path: self.path(store), embedded: true })
    }

    fn decompress(&self) -> Result<Vec<u8>, KernelError> {
        let content = zstd::bulk::decompress(self.zstd, self.size).map_err(KernelError::Damaged)?;
        let found = Digest::of(&content).hex();
        if found != self.sha256 {
            let why = format!("its sha256 is {found}, not {}", self.sha256);
            return Err(KernelError::Damaged(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        Ok(content)
    }
}

/// Makes the file `path` in `directory`, whose lock is held, whole or not at all. A third of a kernel is zeros, which are
/// left out.
fn write(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    // One name for all: what a killed process has left is not kept for ever.
    let part = directory.join("vmlinux.part");
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::create_new(&part)?;
    let written = fill(&file, content).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // The next one does it, if this one cannot.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn fill(file: &File, content: &[u8]) -> io::Result<()> {
    file.set_len(content.len() as u64)?;
    for (index, block) in content.chunks(BLOCK).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, (index * BLOCK) as u64)?;
        }
    }
    file.set_permissions(Permissions::from_mode(0o444))?;
    // Before its name: after a crash it is whole or not there.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Barrier;

    use super::*;

    const HOLE: usize = 64 * BLOCK;

    /// Data, a hole, and an end that fills no block.
    fn content() -> Vec<u8> {
        let mut content = b"\x7fELF".repeat(BLOCK);
        content.resize(content.len() + HOLE, 0);
        content.extend_from_slice(b"end");
        content
    }

    /// A store, and a kernel that is packed.
    struct Packed {
        store: tempfile::TempDir,
        zstd: Vec<u8>,
        sha256: String,
        size: usize,
    }

    impl Packed {
        fn new() -> Self {
            let content = content();
            Self {
                store: tempfile::tempdir().unwrap(),
                zstd: zstd::bulk::compress(&content, 3).unwrap(),
                sha256: Digest::of(&content).hex(),
                size: content.len(),
            }
        }

        fn embedded(&self) -> Embedded<'_> {
            Embedded { zstd: &self.zstd, sha256: &self.sha256, size: self.size }
        }

        fn unpack(&self) -> Result<Kernel, KernelError> {
            self.embedded().in_store(self.store.path())
        }

        /// The names beside the kernel, which is one of them.
        fn files(&self) -> Vec<String> {
            let directory = self.embedded().directory(self.store.path());
            let entries = std::fs::read_dir(directory).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn is_unpacked_once() {
        let packed = Packed::new();
        let kernel = packed.unpack().unwrap();
        assert_eq!(kernel.path, packed.store.path().join("kernels").join(&packed.sha256).join("vmlinux"));
        assert_eq!(std::fs::read(&kernel.path).unwrap(), content());
        let found = kernel.file.metadata().unwrap();
        assert_eq!(found.mode() & 0o7777, 0o444);
        assert!(found.blocks() * 512 < HOLE as u64, "{} bytes on disk", found.blocks() * 512);
        assert_eq!(packed.files(), ["vmlinux"]);

        let again = packed.unpack().unwrap();
        assert_eq!(again.file.metadata().unwrap().ino(), found.ino());
        let looked_at = packed.embedded().in_memory(packed.store.path()).unwrap();
        assert_eq!(looked_at.file.metadata().unwrap().ino(), found.ino());
    }

    #[test]
    fn is_looked_at_without_a_trace() {
        let packed = Packed::new();
        let kernel = packed.embedded().in_memory(packed.store.path()).unwrap();
        let mut found = vec![0; packed.size];
        kernel.file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, content());
        assert_eq!(kernel.file.metadata().unwrap().len(), packed.size as u64);
        assert_eq!(std::fs::read_dir(packed.store.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_damaged_is_not_unpacked() {
        let damage: [fn(&mut Packed); 5] = [
            |packed| packed.zstd.truncate(packed.zstd.len() / 2),
            |packed| packed.zstd.clear(),
            |packed| packed.zstd[0] ^= 1,
            // Sound, but another content; longer than it should be.
            |packed| packed.zstd = zstd::bulk::compress(&vec![1; packed.size], 3).unwrap(),
            |packed| packed.size -= 1,
        ];
        for (index, damage) in damage.into_iter().enumerate() {
            let mut packed = Packed::new();
            damage(&mut packed);
            let unpacked = packed.unpack();
            assert!(matches!(unpacked, Err(KernelError::Damaged(_))), "{index}: {unpacked:?}");
            assert!(packed.files().is_empty(), "{index}: {:?}", packed.files());
        }
    }

    #[test]
    fn leftovers_are_replaced() {
        let packed = Packed::new();
        let directory = packed.embedded().directory(packed.store.path());
        std::fs::create_dir_all(&directory).unwrap();
        for leftover in ["vmlinux", "vmlinux.part"] {
            let path = directory.join(leftover);
            std::fs::write(&path, b"short").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        }
        let kernel = packed.unpack().unwrap();
        assert_eq!(std::fs::read(&kernel.path).unwrap(), content());
        assert_eq!(packed.files(), ["vmlinux"]);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let packed = Packed::new();
        std::fs::write(packed.store.path().join("kernels"), b"a file").unwrap();
        let message = packed.unpack().unwrap_err().to_string();
        assert!(message.contains(&format!("kernels/{}/vmlinux", packed.sha256)), "{message}");

        let packed = Packed::new();
        std::fs::create_dir_all(packed.embedded().path(packed.store.path()).join("in the way")).unwrap();
        assert!(matches!(packed.unpack(), Err(KernelError::Unpack { .. })));
        assert_eq!(packed.files(), ["vmlinux"]);
    }

    #[test]
    fn many_at_once() {
        let packed = Packed::new();
        let begin = Barrier::new(8);
        let unpack = || {
            begin.wait();
            packed.unpack().unwrap().file.metadata().unwrap().ino()
        };
        let inodes = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(unpack)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
        assert_eq!(packed.files(), ["vmlinux"]);
        assert_eq!(std::fs::read(packed.embedded().path(packed.store.path())).unwrap(), content());
    }
}
