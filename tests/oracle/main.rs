//! Converted images against an oracle: `umoci unpack` says what is in an image, e2fsck that the file system is one, and
//! the kernel that it is what it looks like.
//!
//! Loop mounts need root. An ordinary user's run compares what `debugfs` copies out, and says what it could not see.
//! Where umoci departs from the OCI image specification, the specification decides; see `exceptions`.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(unreachable_pub)]
#![allow(missing_docs, reason = "a test program has no public items; its modules say what they are for")]

mod archive;
mod churn;
mod command;
mod compare;
mod convert;
mod exceptions;
mod ext4;
mod layout;
mod torture;
mod tree;

use std::path::{Path, PathBuf};

use archive::Reader;
use command::{run, tool};
use compare::{Depth, Exception, assert_same};
use convert::Converted;
use ext4::{Mount, assert_clean};
use layout::Compression;
use tempfile::TempDir;
use tree::Tree;

/// A directory for what a test makes: on the build's disk, since a tmpfs has not the xattrs, nor the space.
fn scratch() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The layout of an image of `scripts/recipes`, made when it is not cached.
fn recipe(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/images");
    PathBuf::from(run(tool("bash").arg(script).args([name, "--no-import"])).trim())
}

fn torture(directory: &Path, compression: Compression, reader: Reader) -> PathBuf {
    let layout = directory.join(format!("{compression:?}-{reader:?}").to_lowercase());
    layout::write(&layout, &torture::layers(directory, reader), compression);
    layout
}

/// Reads a converted image's tree, which is to be compared with `expected`: through a mount, or what debugfs copies out.
fn with_tree(image: &Path, expected: &Tree, use_tree: impl FnOnce(Tree, Depth)) {
    if is_root() {
        let mount = Mount::read_only(image);
        use_tree(Tree::read(mount.path()), Depth::Full);
        mount.unmount();
    } else {
        println!(
            "no root: the mount is skipped, and owners, times, xattrs, device numbers and link groups are not compared"
        );
        let directory = scratch();
        ext4::dump(image, directory.path(), expected);
        use_tree(Tree::read(directory.path()), Depth::Unprivileged);
    }
}

/// The whole proof for one image.
fn prove(what: &str, layout: &Path, for_umoci: &Path, exceptions: &[Exception]) -> Converted {
    let converted = convert::voidrun(layout);
    assert_clean(&format!("{what}, as converted"), &converted.rootfs);
    let oracle = scratch();
    let oracle = Tree::read(&convert::umoci(for_umoci, oracle.path()));
    with_tree(&converted.rootfs, &oracle, |ours, depth| assert_same(what, &ours, &oracle, depth, exceptions));
    if is_root() {
        let (_directory, copy) = ext4::copy(&converted.rootfs);
        let mount = Mount::writable(&copy);
        churn::churn(mount.path());
        mount.unmount();
        assert_clean(&format!("{what}, after the kernel wrote to it"), &copy);
    }
    converted
}

#[test]
fn the_default_image_is_what_umoci_unpacks() {
    let layout = recipe("code");
    prove("code", &layout, &layout, &[]);
}

#[test]
fn a_debian_image_of_three_layers_is_what_umoci_unpacks() {
    let layout = recipe("debian");
    prove("debian", &layout, &layout, &[]);
}

#[test]
fn everything_a_tar_can_hold_is_what_umoci_unpacks() {
    let directory = scratch();
    let layout = torture(directory.path(), Compression::Gzip, Reader::Any);
    let for_umoci = torture(directory.path(), Compression::Gzip, Reader::Umoci);
    let converted = prove("torture", &layout, &for_umoci, exceptions::TORTURE);
    let again = convert::voidrun(&layout);
    assert_eq!(
        ext4::fingerprint(&converted.rootfs),
        ext4::fingerprint(&again.rootfs),
        "the same layout converted twice gives different bytes: {} and {}",
        converted.rootfs.display(),
        again.rootfs.display(),
    );
}

/// A hole takes no space, however it was written.
fn assert_holes(tree: &Tree) {
    for (path, node) in &tree.nodes {
        let most: u64 = match path.to_str() {
            Some("sparse/over-4-gib") => 64 << 10,
            Some("sparse/thousand-extents" | "sparse/thousand-extents-old") => 5 << 20,
            Some(path) if path.starts_with("sparse/") && path.contains("-hole") => 16 << 10,
            _ => continue,
        };
        assert!(
            node.allocated <= most,
            "/{}: {} bytes are allocated, {most} are enough",
            path.display(),
            node.allocated
        );
    }
}

/// umoci reads no zstd.
#[test]
fn the_compression_of_layers_does_not_matter() {
    let directory = scratch();
    let gzip = convert::voidrun(&torture(directory.path(), Compression::Gzip, Reader::Any));
    with_tree(&gzip.rootfs, &Tree::default(), |gzip, depth| {
        if depth == Depth::Full {
            assert_holes(&gzip); // debugfs fills some
        }
        for compression in [Compression::Zstd, Compression::Plain] {
            let other = convert::voidrun(&torture(directory.path(), compression, Reader::Any));
            assert_clean(&format!("torture, {compression:?}"), &other.rootfs);
            with_tree(&other.rootfs, &gzip, |other, _| {
                assert_same(&format!("torture, {compression:?} and gzip"), &other, &gzip, depth, &[]);
            });
        }
    });
}
