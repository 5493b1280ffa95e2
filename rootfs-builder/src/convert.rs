//! Layers in, one ext4 file system out: a single pass over each layer, lowest first.
//!
//! Two threads: [`crate::layer::Pipeline`] decompresses, this one hashes, parses and writes.

use std::fs::File;
use std::io;

use crate::ext4::{Ext4Error, FileMap, FileWriter, Summary, Writer, device_is_valid, reserved_blocks};
use crate::image::Digest;
pub use crate::layer::Layer;
use crate::layer::{Entry, EntryKind, Expansion, LayerStream, Pipeline, TarError, TarReader, is_tar_layer};
use crate::progress::{Event, Progress};
use crate::tree::{Content, Inode, Metadata, Tree, TreeError, components};

/// What one image may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of all layers together; and as many pieces of sparse files.
    pub entries: u32,
    /// Bytes of names and link targets together.
    pub name_bytes: u32,
    /// Uncompressed bytes that any layer may have.
    pub free_bytes: u64,
    /// Uncompressed bytes beyond `free_bytes` that a layer may have for each compressed one.
    pub ratio: u64,
}

impl Default for Limits {
    /// 4 million entries, 1 GiB of names. 8 GiB and 1100 times its blob a layer: gzip cannot exceed 1032, and a
    /// zstd layer that does is one that was made to.
    fn default() -> Self {
        Self { entries: 4_000_000, name_bytes: 1 << 30, free_bytes: 8 << 30, ratio: 1100 }
    }
}

/// What the file system shall be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Its size in bytes. `None`: the larger of 10 GiB and twice the content.
    pub size: Option<u64>,
    /// Whether it has a journal, so that it survives a killed sandbox without a check.
    pub journal: bool,
    /// Its UUID, which also seeds checksums and hashes.
    pub uuid: [u8; 16],
    /// What the image may ask for.
    pub limits: Limits,
}

/// Why layers did not become a file system.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A layer never came.
    #[error("layer {number} of {count} is not there")]
    LayerMissing {
        /// Counted from 1.
        number: usize,
        /// In all.
        count: usize,
        /// Why, where it is known.
        #[source]
        source: Option<io::Error>,
    },
    /// Something that is not a tar: an attestation, an encrypted layer.
    #[error("layer {layer} has the media type {media_type:?}, which is not a tar layer")]
    MediaType {
        /// The blob.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Its tar stream is damaged or malformed.
    #[error("layer {layer}")]
    Tar {
        /// The blob.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: TarError,
    },
    /// It expands beyond [`Limits`].
    #[error("layer {layer}")]
    Expansion {
        /// The blob.
        layer: Digest,
        /// By how much.
        #[source]
        source: Expansion,
    },
    /// An entry has no place in the tree.
    #[error("layer {layer}")]
    Tree {
        /// The blob.
        layer: Digest,
        /// Which, and why.
        #[source]
        source: TreeError,
    },
    /// An entry is not what ext4 can hold.
    #[error("layer {layer}: {path:?}")]
    Entry {
        /// The blob.
        layer: Digest,
        /// The entry.
        path: String,
        /// Why.
        #[source]
        source: Ext4Error,
    },
    /// Sparse files in more pieces than [`Limits::entries`].
    #[error("layer {layer}: {path:?} is beyond the limit of {limit} pieces of sparse files")]
    TooManyRegions {
        /// The blob.
        layer: Digest,
        /// The first entry too many.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// Its content is not what the image's configuration says.
    #[error("layer {layer} expands to {actual}, but the image's configuration says {expected}")]
    DiffId {
        /// The blob.
        layer: Digest,
        /// By the configuration.
        expected: Digest,
        /// By its bytes.
        actual: Digest,
    },
    /// The file system could not be written or completed.
    #[error(transparent)]
    Ext4(Ext4Error),
}

/// Writes the file system of `count` layers, which come lowest first, each as soon as it is there, into `output`:
/// an empty file, open for reading and writing. It is not synchronised to disk.
pub fn convert(
    layers: impl Iterator<Item = io::Result<Layer>> + Send + 'static,
    count: usize,
    output: &File,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Summary, ConvertError> {
    let limits = options.limits;
    let mut conversion = Conversion {
        tree: Tree::new(limits.entries, limits.name_bytes),
        writer: Writer::new(output, options.uuid, reserved_blocks(options.size)),
        regions: 0,
        max_regions: limits.entries as usize,
    };
    let mut pipeline = Pipeline::start(layers);
    for number in 1..=count {
        let missing = |source| ConvertError::LayerMissing { number, count, source };
        let stream = pipeline
            .next_layer(|blob| limits.free_bytes.saturating_add(blob.saturating_mul(limits.ratio)))
            .map_err(|error| missing(Some(error)))?
            .ok_or_else(|| missing(None))?;
        progress(Event::Converting { layer: number, layers: count });
        conversion.apply(stream)?;
    }
    conversion.writer.finish(&conversion.tree, options.size, options.journal).map_err(ConvertError::Ext4)
}

struct Conversion<'a> {
    tree: Tree,
    writer: Writer<'a>,
    /// Regions of sparse files so far.
    regions: usize,
    max_regions: usize,
}

/// Why one entry was not applied; the layer is added by the caller.
enum Failure {
    Tar(TarError),
    Tree(TreeError),
    Ext4(Ext4Error),
    Regions { path: String, limit: usize },
}

impl From<TarError> for Failure {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<Ext4Error> for Failure {
    fn from(error: Ext4Error) -> Self {
        Self::Ext4(error)
    }
}

impl Conversion<'_> {
    fn apply(&mut self, mut stream: LayerStream<'_>) -> Result<(), ConvertError> {
        let layer = stream.descriptor.digest;
        if !is_tar_layer(&stream.descriptor.media_type) {
            let media_type = stream.descriptor.media_type.chars().take(200).collect();
            return Err(ConvertError::MediaType { layer, media_type });
        }
        self.tree.begin_layer();
        let mut reader = TarReader::new(&mut stream);
        while let Some(entry) = reader.next_entry().map_err(|e| tar_error(layer, e))? {
            self.apply_entry(&entry, &mut reader).map_err(|failure| match failure {
                Failure::Tar(source) => tar_error(layer, source),
                Failure::Regions { path, limit } => ConvertError::TooManyRegions { layer, path, limit },
                Failure::Tree(source) => ConvertError::Tree { layer, source },
                Failure::Ext4(source @ (Ext4Error::Write(_) | Ext4Error::TooLarge)) => {
                    ConvertError::Ext4(source)
                }
                Failure::Ext4(source) => {
                    ConvertError::Entry { layer, path: entry.path.escape_ascii().to_string(), source }
                }
            })?;
        }
        let expected = stream.diff_id;
        let actual = stream.finish().map_err(|e| tar_error(layer, TarError::Read(e)))?;
        if actual != expected {
            return Err(ConvertError::DiffId { layer, expected, actual });
        }
        Ok(())
    }

    fn apply_entry<R: io::BufRead>(
        &mut self,
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), Failure> {
        let path = components(&entry.path)?;
        // Whiteouts are told by name alone (layer.md, "Representing Changes"); what AUFS kept for itself is passed over.
        if path.iter().any(|name| name.starts_with(b".wh..wh.") && *name != b".wh..wh..opq") {
            return Ok(());
        }
        if let Some((name, parents)) = path.split_last() {
            if parents.iter().any(|name| name.starts_with(b".wh.")) {
                return Err(TreeError::BelowWhiteout(entry.path.escape_ascii().to_string()).into());
            }
            if let Some(hidden) = name.strip_prefix(b".wh.") {
                match hidden {
                    b".wh..opq" => self.tree.opaque(parents)?,
                    _ => self.tree.whiteout(parents, hidden)?,
                }
                return Ok(());
            }
        }
        if let EntryKind::HardLink { target } = &entry.kind {
            // It has the metadata of its target, whatever its own header says, as with other unpackers.
            return Ok(self.tree.hard_link(&path, target)?);
        }
        let metadata = Metadata {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: self.writer.xattrs(&entry.xattrs)?,
        };
        let content = match &entry.kind {
            EntryKind::Directory => return Ok(self.tree.add_directory(&path, metadata)?),
            EntryKind::Symlink { target } => Content::Symlink(target.as_slice().into()),
            &EntryKind::CharDevice { device: (major, minor) } => {
                device_is_valid(major, minor)?;
                Content::CharDevice(major, minor)
            }
            &EntryKind::BlockDevice { device: (major, minor) } => {
                device_is_valid(major, minor)?;
                Content::BlockDevice(major, minor)
            }
            EntryKind::Fifo => Content::Fifo,
            // Hard links are done with.
            EntryKind::File { .. } | EntryKind::HardLink { .. } => Content::File(FileMap::default()),
        };
        let id = self.tree.add_inode(Inode { metadata, content });
        if let EntryKind::File { size, regions } = &entry.kind {
            let mut file = self.writer.file(id, *size)?;
            match regions {
                None => copy(reader, &mut file, *size)?,
                Some(regions) => {
                    // Each takes a block, however few bytes of the layer it took.
                    self.regions += regions.len();
                    if self.regions > self.max_regions {
                        let path = entry.path.escape_ascii().to_string();
                        return Err(Failure::Regions { path, limit: self.max_regions });
                    }
                    for region in regions.iter().filter(|region| region.length > 0) {
                        file.seek(region.offset)?;
                        copy(reader, &mut file, region.length)?;
                    }
                }
            }
            self.tree.set_content(id, Content::File(file.finish()?));
        }
        Ok(self.tree.link(&path, id)?)
    }
}

/// Copies `left` bytes of the entry's data.
fn copy<R: io::BufRead>(
    reader: &mut TarReader<R>,
    file: &mut FileWriter<'_, '_>,
    mut left: u64,
) -> Result<(), Failure> {
    while left > 0 {
        let data = reader.data()?;
        let count = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        debug_assert!(count > 0, "the reader has checked that there are as many stored bytes");
        file.write(&data[..count])?;
        reader.consume(count);
        left -= count as u64;
    }
    Ok(())
}

/// A bomb is noticed below the decoder's interface, which knows only I/O errors.
fn tar_error(layer: Digest, source: TarError) -> ConvertError {
    match source {
        TarError::Read(error) => match error.downcast::<Expansion>() {
            Ok(source) => ConvertError::Expansion { layer, source },
            Err(error) => ConvertError::Tar { layer, source: TarError::Read(error) },
        },
        source => ConvertError::Tar { layer, source },
    }
}
