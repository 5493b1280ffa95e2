//! The directory with images and disks, and the file system that it is on.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use super::finding::Finding;
use crate::size::Size;

/// An image, its layers and some disks.
const LITTLE_SPACE: u64 = 10 << 30;

pub(super) fn check(home: &Path) -> Vec<Finding> {
    let home = std::path::absolute(home).unwrap_or_else(|_| home.to_owned());
    // The store is made by the first command that needs it, not by this one.
    let existing = home.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(&home);
    let file = match tempfile::tempfile_in(existing) {
        Ok(file) => file,
        Err(error) => return vec![unwritable(&home, existing, &error)],
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let resolved = existing.canonicalize().unwrap_or_else(|_| existing.to_owned());
    let mut findings = vec![directory(&home, existing == home, file_system(&mounts, &resolved))];
    findings
        .extend(fstatvfs(&file).ok().map(|stat| space(&home, stat.f_bavail.saturating_mul(stat.f_frsize))));
    findings.push(sparse(try_sparse(&file)));
    findings
}

fn unwritable(home: &Path, existing: &Path, error: &io::Error) -> Finding {
    let (home, existing) = (home.display(), existing.display());
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "Make {existing} yours (sudo chown $USER), or choose another place: VOIDRUN_HOME or --home."
            )
        }
        io::ErrorKind::StorageFull => {
            "Free space: `voidrun images gc --grace 0s` removes what no image needs.".into()
        }
        _ => "Choose another place for the store: VOIDRUN_HOME or --home.".into(),
    };
    Finding::failed("store.directory", format!("{home}: no file can be made in {existing}: {error}"), remedy)
}

/// The type of the file system that `path` is on, by /proc/self/mountinfo (proc_pid_mountinfo(5)).
fn file_system<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mount_point = unescaped(left.split(' ').nth(4)?);
        path.starts_with(&mount_point)
            .then(|| (mount_point.components().count(), right.split(' ').next()))
            .and_then(|(depth, kind)| Some((depth, kind?)))
    });
    // Of those at one place the last one is on top.
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// In mountinfo blank, tab, line feed and backslash are octal.
fn unescaped(text: &str) -> PathBuf {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, character)| text.replace(code, character)).into()
}

fn directory(home: &Path, exists: bool, file_system: Option<&str>) -> Finding {
    const CHECK: &str = "store.directory";
    let kind = file_system.unwrap_or("an unknown file system");
    let detail =
        format!("{} {} on {kind}", home.display(), if exists { "is writable," } else { "can be made," });
    let elsewhere = "Choose a place on a local disk: VOIDRUN_HOME or --home.";
    match kind {
        "tmpfs" | "ramfs" => Finding::warning(CHECK, format!("{detail}: it takes memory"), elsewhere),
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph" | "glusterfs" | "fuse.sshfs" | "afs" => {
            Finding::warning(
                CHECK,
                format!("{detail}: over a network it is slow, and locks may not hold"),
                elsewhere,
            )
        }
        _ => Finding::ok(CHECK, detail),
    }
}

fn space(home: &Path, available: u64) -> Finding {
    const CHECK: &str = "store.space";
    let detail = format!("{} free", BinaryBytes(available));
    if available < LITTLE_SPACE {
        let remedy = format!(
            "`voidrun images gc` removes what no image needs, `voidrun images rm` images. {} is little; another disk \
             can hold the store instead of {}: VOIDRUN_HOME or --home.",
            Size(LITTLE_SPACE),
            home.display()
        );
        Finding::warning(CHECK, detail, remedy)
    } else {
        Finding::ok(CHECK, detail)
    }
}

/// What a file system can do for disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sparse {
    /// A hole takes no space.
    holes: bool,
    /// One can be made where data was.
    punching: bool,
}

fn try_sparse(file: &File) -> io::Result<Sparse> {
    const LENGTH: u64 = 64 << 20;
    const PIECE: u64 = 1 << 20;
    file.set_len(LENGTH)?;
    file.write_all_at(&vec![1; PIECE as usize], 0)?;
    // In units of 512 bytes, whatever the file system's (stat(2)).
    let holes = file.metadata()?.blocks() * 512 < LENGTH / 2;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut byte = [1];
    let punching = fallocate(file, flags, 0, PIECE).is_ok() && {
        file.read_exact_at(&mut byte, PIECE / 2)?;
        byte == [0]
    };
    Ok(Sparse { holes, punching })
}

fn sparse(tried: io::Result<Sparse>) -> Finding {
    const CHECK: &str = "store.sparse";
    let detail = match tried {
        Ok(Sparse { holes: true, punching: true }) => {
            return Finding::ok(CHECK, "files may have holes, and get new ones");
        }
        Ok(Sparse { holes: false, .. }) => {
            "files have no holes: disks and images take their full size".into()
        }
        Ok(Sparse { punching: false, .. }) => {
            "files get no new holes: what a guest deletes goes on taking space".into()
        }
        Err(error) => format!("a file of 64 MiB cannot be tried: {error}"),
    };
    Finding::warning(
        CHECK,
        detail,
        "ext4, XFS, Btrfs and ZFS have both: VOIDRUN_HOME or --home chooses another place.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Status;

    const MOUNTS: &str = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        23 22 0:22 / /home rw shared:1 - xfs /dev/vdb rw\n\
        24 22 0:23 / /mnt/with\\040blank rw - nfs4 server:/x rw\n\
        25 22 0:24 / /tmp rw - ext4 /dev/vdc rw\n\
        26 25 0:25 / /tmp rw - tmpfs tmpfs rw\n";

    #[test]
    fn which_file_system() {
        for (path, kind) in [
            ("/srv", "ext4"),
            ("/home/ann/x", "xfs"),
            ("/homeless", "ext4"),
            ("/mnt/with blank/x", "nfs4"),
            ("/tmp/x", "tmpfs"),
        ] {
            assert_eq!(file_system(MOUNTS, Path::new(path)), Some(kind), "{path}");
        }
        assert_eq!(file_system("damaged", Path::new("/")), None);
    }

    #[test]
    fn good_and_bad_places() {
        let of = |kind| directory(Path::new("/store"), true, kind);
        assert_eq!(of(Some("ext4")), Finding::ok("store.directory", "/store is writable, on ext4"));
        assert_eq!(of(None).status, Status::Ok);
        assert_eq!(of(Some("tmpfs")).status, Status::Warning);
        assert!(of(Some("nfs4")).detail.contains("network"));
        assert_eq!(space(Path::new("/store"), 10 << 30).status, Status::Ok);
        assert_eq!(space(Path::new("/store"), (10 << 30) - 1).status, Status::Warning);
    }

    #[test]
    fn holes() {
        let status = |holes, punching| sparse(Ok(Sparse { holes, punching })).status;
        assert_eq!(status(true, true), Status::Ok);
        assert_eq!(status(true, false), Status::Warning);
        assert_eq!(status(false, true), Status::Warning);
        assert_eq!(sparse(Err(io::ErrorKind::StorageFull.into())).status, Status::Warning);
        let tried = try_sparse(&tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(tried, Sparse { holes: true, punching: true });
    }

    #[test]
    fn nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let findings = check(&dir.path().join("not/yet/there"));
        assert!(findings[0].detail.contains("can be made"), "{findings:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let findings = check(&file.join("store"));
        assert_eq!((findings.len(), findings[0].status), (1, Status::Failed), "{findings:?}");
    }
}
