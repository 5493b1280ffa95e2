//! The kernel that guests boot.

use std::fs::File;
use std::path::{Path, PathBuf};

use vmm::memory;
use vmm::spec::MemoryMib;

use super::finding::{Finding, chain};
use crate::config::Setting;
use crate::sandbox::{Kernel, KernelError};

/// `setting` is what names a kernel, if anything does, and `home` the store.
pub(super) fn check(setting: &Setting<Option<PathBuf>>, home: &Path) -> Vec<Finding> {
    const CHECK: &str = "guest.kernel";
    const REMEDY: &str = "`./kernels/build` makes a kernel and prints its path. Name it with --kernel, VOIDRUN_KERNEL or \
                          `kernel` in the configuration, or copy it to kernels/vmlinux in the store.";
    let finding = match Kernel::look(setting, home) {
        Ok(kernel) => match (load(&kernel.file), kernel.embedded) {
            (Ok(()), false) => Finding::ok(CHECK, kernel.path.display().to_string()),
            (Ok(()), true) => Finding::ok(CHECK, embedded(&kernel.path)),
            (Err(why), false) => Finding::failed(CHECK, format!("{}: {why}", kernel.path.display()), REMEDY),
            (Err(why), true) => Finding::failed(
                CHECK,
                format!("{}: {why}", embedded(&kernel.path)),
                format!("rm -f {}\nThe next run unpacks it again.", kernel.path.display()),
            ),
        },
        Err(KernelError::Missing(path)) => {
            Finding::failed(CHECK, format!("none is named, and {} is not there", path.display()), REMEDY)
        }
        Err(error) => Finding::failed(CHECK, chain(&error), REMEDY),
    };
    vec![finding]
}

/// `path` is its place in the store.
fn embedded(path: &Path) -> String {
    let when = if path.exists() { "unpacked to" } else { "which the first run unpacks to" };
    format!("the one in this binary, {when} {}", path.display())
}

/// Loads it as a machine does; the text says why that fails.
fn load(file: &File) -> Result<(), String> {
    let size = MemoryMib::try_from(MemoryMib::MIN).map_err(|error| error.to_string())?;
    let memory = memory::allocate(size).map_err(|error| chain(&error))?;
    vmm::arch::x86_64::Kernel::load(&memory, file).map(drop).map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Status;
    use crate::config::Origin;

    /// The smallest 64-bit ELF executable for x86-64: one segment of one byte at 16 MiB.
    fn elf() -> Vec<u8> {
        let mut file = vec![0; 0x1001];
        file[..0x14].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
        let mut put = |at: usize, value: u64, bytes: usize| {
            file[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        for (at, value, bytes) in [
            (0x14, 1, 4),           // version
            (0x18, 0x0100_0000, 8), // entry
            (0x20, 0x40, 8),        // program headers
            (0x34, 0x40, 2),        // size of this header
            (0x36, 0x38, 2),        // size of a program header
            (0x38, 1, 2),           // how many
            (0x40, 1, 4),           // PT_LOAD
            (0x44, 5, 4),           // read, execute
            (0x48, 0x1000, 8),      // offset
            (0x50, 0x0100_0000, 8), // virtual address
            (0x58, 0x0100_0000, 8), // physical address
            (0x60, 1, 8),           // bytes in the file
            (0x68, 1, 8),           // bytes in memory
            (0x70, 0x1000, 8),      // alignment
        ] {
            put(at, value, bytes);
        }
        file
    }

    #[test]
    fn which_kernel_and_what_is_wrong_with_it() {
        let home = tempfile::tempdir().unwrap();
        let nobody = Setting { value: None, origin: Origin::Default };
        let of = |setting: &Setting<Option<PathBuf>>| check(setting, home.path()).remove(0);
        let missing = of(&nobody);
        assert_eq!(missing.status, Status::Failed);
        assert!(missing.detail.contains("kernels/vmlinux is not there"), "{missing:?}");
        assert!(missing.remedy.unwrap().contains("./kernels/build"));

        std::fs::create_dir(home.path().join("kernels")).unwrap();
        std::fs::write(home.path().join("kernels/vmlinux"), elf()).unwrap();
        let found = of(&nobody);
        assert_eq!(found.status, Status::Ok, "{found:?}");

        let text = home.path().join("text");
        std::fs::write(&text, b"not a kernel").unwrap();
        let named = of(&Setting { value: Some(text), origin: Origin::Flag("--kernel") });
        assert_eq!(named.status, Status::Failed);
        assert!(named.detail.contains("text: the kernel is neither"), "{named:?}");
    }
}
