//! Which kernel a guest boots: `--kernel`, VOIDRUN_KERNEL, the configuration's `kernel`, and what lies in the store.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Setting;

/// The place of a kernel in the store.
const IN_STORE: &str = "kernels/vmlinux";

/// A kernel, open for reading.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

/// There is no kernel to boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// Nobody has named one, and none is in the store.
    #[error(
        "there is no guest kernel: `./kernels/build` makes one and prints its path; name it with --kernel, VOIDRUN_KERNEL or \
         `kernel` in the configuration, or copy it to {}", .0.display()
    )]
    Missing(PathBuf),
    /// It cannot be opened.
    #[error("cannot open the guest kernel {} ({origin})", path.display())]
    Open { path: PathBuf, origin: String, source: io::Error },
    /// It is something else.
    #[error("the guest kernel {} ({origin}) is not a file: expected a vmlinux or a bzImage", path.display())]
    NoFile { path: PathBuf, origin: String },
}

impl Kernel {
    /// Opens what `setting` names, or the kernel of the store at `store`.
    pub(crate) fn find(setting: &Setting<Option<PathBuf>>, store: &Path) -> Result<Self, KernelError> {
        let (path, origin) = match &setting.value {
            Some(path) => (path.clone(), setting.origin.to_string()),
            None => (store.join(IN_STORE), "store".into()),
        };
        match File::open(&path) {
            Ok(file) if file.metadata().is_ok_and(|found| found.is_file()) => Ok(Self { file, path }),
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
    fn the_named_one_before_that_of_the_store() {
        let store = tempfile::tempdir().unwrap();
        let nobody = Setting { value: None, origin: Origin::Default };
        let missing = Kernel::find(&nobody, store.path()).unwrap_err().to_string();
        assert!(missing.contains("./kernels/build") && missing.contains("VOIDRUN_KERNEL"), "{missing}");

        std::fs::create_dir(store.path().join("kernels")).unwrap();
        std::fs::write(store.path().join(IN_STORE), b"kernel").unwrap();
        assert_eq!(Kernel::find(&nobody, store.path()).unwrap().path, store.path().join(IN_STORE));

        let named =
            |path: PathBuf| Setting { value: Some(path), origin: Origin::Environment("VOIDRUN_KERNEL") };
        let other = store.path().join("other");
        // What was named and is not there is an error, not a reason to take another.
        let message = Kernel::find(&named(other.clone()), store.path()).unwrap_err().to_string();
        assert!(message.contains("other") && message.contains("VOIDRUN_KERNEL"), "{message}");
        std::fs::write(&other, b"kernel").unwrap();
        assert_eq!(Kernel::find(&named(other.clone()), store.path()).unwrap().path, other);
        let directory = Kernel::find(&named(store.path().to_owned()), store.path());
        assert!(matches!(directory, Err(KernelError::NoFile { .. })));
    }
}
