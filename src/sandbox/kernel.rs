//! Which kernel a guest boots: `--kernel`, VOIDRUN_KERNEL, the configuration's `kernel`, the one in this binary, and what lies
//! in the store, in this order.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::embedded::{EMBEDDED, Embedded};
use crate::config::Setting;

/// The place of a kernel in the store.
const IN_STORE: &str = "kernels/vmlinux";

/// A kernel, open for reading.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// Whether it is the one in this binary, whose place in the store `path` then is.
    pub(crate) embedded: bool,
}

/// There is no kernel to boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// Nobody has named one, and none is in the store.
    #[error(
        "there is no guest kernel: a release carries one, and this voidrun was built without; `./kernels/build` makes one and \
         prints its path; name it with --kernel, VOIDRUN_KERNEL or `kernel` in the configuration, or copy it to {}", .0.display()
    )]
    Missing(PathBuf),
    /// It cannot be opened.
    #[error("cannot open the guest kernel {} ({origin})", path.display())]
    Open { path: PathBuf, origin: String, source: io::Error },
    /// It is something else.
    #[error("the guest kernel {} ({origin}) is not a file: expected a vmlinux or a bzImage", path.display())]
    NoFile { path: PathBuf, origin: String },
    /// The one in this binary is not what was put into it.
    #[error(
        "the guest kernel in this binary is damaged: install voidrun again, or name another kernel with --kernel"
    )]
    Damaged(#[source] io::Error),
    /// There is no file to be made of the one in this binary.
    #[error("cannot unpack the guest kernel in this binary to {}", path.display())]
    Unpack { path: PathBuf, source: io::Error },
}

impl Kernel {
    /// Opens what `setting` names, else the kernel in this binary, unpacked into the store at `store` if it is not there, else
    /// the store's own.
    pub(crate) fn find(setting: &Setting<Option<PathBuf>>, store: &Path) -> Result<Self, KernelError> {
        Self::choose(setting, store, EMBEDDED.as_ref(), Embedded::in_store)
    }

    /// The kernel that [`find`](Self::find) opens, where nothing is to be written: one that is not unpacked yet is in memory.
    pub(crate) fn look(setting: &Setting<Option<PathBuf>>, store: &Path) -> Result<Self, KernelError> {
        Self::choose(setting, store, EMBEDDED.as_ref(), Embedded::in_memory)
    }

    fn choose<'a>(
        setting: &Setting<Option<PathBuf>>,
        store: &Path,
        embedded: Option<&Embedded<'a>>,
        unpack: impl FnOnce(&Embedded<'a>, &Path) -> Result<Self, KernelError>,
    ) -> Result<Self, KernelError> {
        let (path, origin) = match (&setting.value, embedded) {
            (Some(path), _) => (path.clone(), setting.origin.to_string()),
            (None, Some(embedded)) => return unpack(embedded, store),
            (None, None) => (store.join(IN_STORE), "store".into()),
        };
        match File::open(&path) {
            Ok(file) if file.metadata().is_ok_and(|found| found.is_file()) => {
                Ok(Self { file, path, embedded: false })
            }
            Ok(_) => Err(KernelError::NoFile { path, origin }),
            Err(e) if setting.value.is_none() && e.kind() == io::ErrorKind::NotFound => {
                Err(KernelError::Missing(path))
            }
            Err(source) => Err(KernelError::Open { path, origin, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    #[test]
    fn the_named_one_then_the_embedded_one_then_that_of_the_store() {
        let content = b"kernel in the binary";
        let zstd = zstd::bulk::compress(content, 3).unwrap();
        let sha256 = rootfs_builder::image::Digest::of(content).hex();
        let packed = Embedded { zstd: &zstd, sha256: &sha256, size: content.len() };

        let store = tempfile::tempdir().unwrap();
        let find = |setting: &Setting<Option<PathBuf>>, embedded: Option<&Embedded<'_>>| {
            Kernel::choose(setting, store.path(), embedded, Embedded::in_store)
        };
        let nobody = Setting { value: None, origin: Origin::Default };
        let missing = find(&nobody, None).unwrap_err().to_string();
        assert!(missing.contains("./kernels/build") && missing.contains("VOIDRUN_KERNEL"), "{missing}");

        let in_store = store.path().join(IN_STORE);
        std::fs::create_dir(store.path().join("kernels")).unwrap();
        std::fs::write(&in_store, b"kernel").unwrap();
        let kernel = find(&nobody, None).unwrap();
        assert_eq!((kernel.path, kernel.embedded), (in_store, false));

        let kernel = find(&nobody, Some(&packed)).unwrap();
        assert_eq!(std::fs::read(&kernel.path).unwrap(), content);
        assert!(kernel.embedded);

        let named =
            |path: PathBuf| Setting { value: Some(path), origin: Origin::Environment("VOIDRUN_KERNEL") };
        let other = store.path().join("other");
        // What was named and is not there is an error, not a reason to take another.
        let message = find(&named(other.clone()), Some(&packed)).unwrap_err().to_string();
        assert!(message.contains("other") && message.contains("VOIDRUN_KERNEL"), "{message}");
        std::fs::write(&other, b"kernel").unwrap();
        let kernel = find(&named(other.clone()), Some(&packed)).unwrap();
        assert_eq!((kernel.path, kernel.embedded), (other, false));
        let directory = find(&named(store.path().to_owned()), Some(&packed));
        assert!(matches!(directory, Err(KernelError::NoFile { .. })));
    }
}
