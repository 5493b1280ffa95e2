//! STAND-IN, replaced at merge: checks the layers and writes their bytes one behind the other.

use std::fs::File;
use std::io::{self, BufReader, Write as _};

pub use crate::layer::Layer;
use crate::progress::{Event, Progress};

/// Of the writer's output.
pub const WRITER_VERSION: u32 = 0;

/// What a conversion may cost.
#[derive(Clone, Debug, Default)]
pub struct Limits {}

/// How to convert.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of the file system, in bytes.
    pub size: Option<u64>,
    /// With a journal?
    pub journal: bool,
    /// Of the file system.
    pub uuid: [u8; 16],
    /// What it may cost.
    pub limits: Limits,
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// The image file's length.
    pub size_bytes: u64,
    /// Files, directories and so on.
    pub entries: u64,
}

/// A conversion that failed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Reading or writing failed.
    #[error("cannot convert")]
    Io(#[from] io::Error),
    /// The layer is not what the configuration says.
    #[error("wrong diff_id")]
    DiffId,
    /// The layers ended early.
    #[error("a layer is missing")]
    Missing,
}

/// Writes the layers into `output`.
pub fn convert(
    layers: impl Iterator<Item = io::Result<Layer>> + Send,
    count: usize,
    mut output: &File,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Summary, ConvertError> {
    let mut done = 0;
    for layer in layers {
        let layer = layer?;
        done += 1;
        progress(Event::Converting { layer: done, layers: count });
        let mut bytes = Vec::new();
        crate::layer::decompress(BufReader::new(layer.blob))?.read_to_end(&mut bytes)?;
        if crate::image::Digest::of(&bytes) != layer.diff_id {
            return Err(ConvertError::DiffId);
        }
        output.write_all(&bytes)?;
    }
    if done != count {
        return Err(ConvertError::Missing);
    }
    let size_bytes = options.size.unwrap_or(10 << 30);
    output.set_len(size_bytes)?;
    Ok(Summary { size_bytes, entries: 0 })
}
