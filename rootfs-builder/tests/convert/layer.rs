//! Layers made for a test, and what becomes of them.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::process::Command;

use rootfs_builder::convert::{ConvertError, Layer, Limits, Options, convert};
use rootfs_builder::ext4::Summary;
use rootfs_builder::image::{Descriptor, Digest};
use tar::{EntryType, Header};
use tempfile::NamedTempFile;

pub(crate) const MIB: u64 = 1 << 20;

/// A layer in the making: an uncompressed tar.
pub(crate) struct LayerBuilder(tar::Builder<Vec<u8>>);

impl LayerBuilder {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Any entry. `path` is written as it is, `..` and leading slashes too.
    pub(crate) fn entry(
        &mut self,
        kind: EntryType,
        path: &str,
        link: &str,
        device: (u32, u32),
        data: &[u8],
    ) -> &mut Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(device.0).unwrap();
        header.set_device_minor(device.1).unwrap();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(&mut self, path: &str, data: &[u8]) -> &mut Self {
        self.entry(EntryType::Regular, path, "", (0, 0), data)
    }

    pub(crate) fn dir(&mut self, path: &str) -> &mut Self {
        self.entry(EntryType::Directory, path, "", (0, 0), b"")
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(EntryType::Symlink, path, target, (0, 0), b"")
    }

    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(EntryType::Link, path, target, (0, 0), b"")
    }

    /// Records for the entry that follows.
    pub(crate) fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn build(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.0, tar::Builder::new(Vec::new())).into_inner().unwrap()
    }
}

/// `bytes` as a layer; `content` is what they expand to.
pub(crate) fn blob(bytes: &[u8], content: &[u8]) -> Layer {
    let mut blob = tempfile::tempfile().unwrap();
    blob.write_all(bytes).unwrap();
    blob.rewind().unwrap();
    let descriptor = Descriptor {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
    };
    Layer { blob, descriptor, diff_id: Digest::of(content) }
}

pub(crate) fn options() -> Options {
    Options { size: Some(64 * MIB), journal: true, uuid: *b"0123456789abcdef", limits: Limits::default() }
}

/// Converts ready layers.
pub(crate) fn convert_blobs(
    layers: Vec<Layer>,
    options: &Options,
) -> Result<(NamedTempFile, Summary), ConvertError> {
    let output = NamedTempFile::new().unwrap();
    let count = layers.len();
    let summary = convert(layers.into_iter().map(Ok), count, output.as_file(), options, &|_| {})?;
    Ok((output, summary))
}

/// Converts uncompressed layers.
pub(crate) fn convert_layers(
    layers: &[Vec<u8>],
    options: &Options,
) -> Result<(NamedTempFile, Summary), ConvertError> {
    convert_blobs(layers.iter().map(|layer| blob(layer, layer)).collect(), options)
}

/// Fails unless `e2fsck -fn` finds nothing to say.
pub(crate) fn assert_clean(image: &Path) {
    let output = command("e2fsck", "e2fsprogs").args(["-fn"]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "e2fsck -fn: {text}{}", String::from_utf8_lossy(&output.stderr));
}

/// What debugfs prints for a request.
pub(crate) fn debugfs(image: &Path, request: &str) -> String {
    let output = command("debugfs", "e2fsprogs").args(["-R", request]).arg(image).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The content of a file in the image.
pub(crate) fn content(image: &Path, path: &str) -> Vec<u8> {
    command("debugfs", "e2fsprogs")
        .args(["-R", &format!("cat \"{path}\"")])
        .arg(image)
        .output()
        .unwrap()
        .stdout
}

/// Bytes that are really on disk.
pub(crate) fn allocated(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().unwrap().blocks() * 512
}

/// A program that has to be there; Debian keeps these in sbin, which not every user's PATH has.
fn command(name: &str, package: &str) -> Command {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: install the Debian package {package}")))
}
