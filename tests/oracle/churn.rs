//! What a kernel does to a file system that is used: creates, deletes, renames, links, truncates and appends, in the
//! directories of the image as well as in new ones.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lsetxattr};

use crate::tree::Tree;

/// Uses the file system at `root`.
pub fn churn(root: &Path) {
    in_a_new_directory(&root.join("churn"));
    let tree = Tree::read(root);
    let paths = |wanted: fn(&fs::FileType) -> bool| -> Vec<PathBuf> {
        tree.nodes
            .keys()
            .map(|path| root.join(path))
            .filter(|path| path != root && wanted(&fs::symlink_metadata(path).unwrap().file_type()))
            .collect()
    };
    // In the image's own directories: a new file in each, so that each has to be searched, and may have to grow.
    for (n, directory) in paths(fs::FileType::is_dir).into_iter().step_by(5).take(2000).enumerate() {
        fs::write(directory.join(format!("churn-{n}")), b"new").unwrap();
    }
    // The image's own files, each changed in a different way.
    for (n, file) in paths(fs::FileType::is_file).into_iter().step_by(7).take(20_000).enumerate() {
        match n % 5 {
            0 => fs::remove_file(&file).unwrap(),
            1 => fs::rename(&file, root.join(format!("churn/renamed-{n}"))).unwrap(),
            2 => OpenOptions::new().append(true).open(&file).unwrap().write_all(&[1; 5000]).unwrap(),
            3 => OpenOptions::new().write(true).open(&file).unwrap().set_len(10).unwrap(),
            _ => fs::hard_link(&file, root.join(format!("churn/linked-{n}"))).unwrap(),
        }
    }
    for link in paths(fs::FileType::is_symlink).into_iter().step_by(3).take(1000) {
        fs::remove_file(link).unwrap();
    }
}

fn in_a_new_directory(top: &Path) {
    fs::create_dir(top).unwrap();
    for n in 0..3000 {
        let path = top.join(format!("file-{n}"));
        fs::write(&path, vec![n as u8; n * 7]).unwrap();
        match n % 4 {
            0 => fs::remove_file(&path).unwrap(),
            1 => fs::rename(&path, top.join(format!("moved-{n}"))).unwrap(),
            2 => symlink("x".repeat(n % 200 + 1), top.join(format!("symlink-{n}"))).unwrap(),
            _ => lsetxattr(&path, "user.churn", &vec![b'c'; n % 2000], XattrFlags::empty()).unwrap(),
        }
    }
    fs::write(top.join("large"), vec![0xa5; 64 << 20]).unwrap();
}
