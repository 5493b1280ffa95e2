//! An OCI layout in a directory.

use std::fs::File;
use std::io::{Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::oci::{Blobs, LocalImage, blob_name, resolve, verified};
use super::{Input, SourceError};
use crate::image::{Descriptor, Digest, MAX_DOCUMENT, Platform};
use crate::progress::{Event, Progress};
use crate::store::{Ingest, Store, StoreError};

/// Opens the layout in `dir` and finds the image.
pub(super) fn open(dir: &Path, tag: Option<&str>, platform: &Platform) -> Result<LocalImage, SourceError> {
    let input = Input::Path(dir.to_owned());
    if !dir.join("oci-layout").is_file() {
        return Err(SourceError::Unrecognised {
            input,
            expected: "an OCI layout: it has no file oci-layout",
        });
    }
    let index = document(dir, "index.json")?;
    let read = |blob: &Descriptor| verified(&input, blob, document(dir, &blob_name(&blob.digest))?);
    let (manifest, config) = resolve(&input, &index, tag, platform, read)?;
    Ok(LocalImage { manifest, config, blobs: Blobs::Layout(dir.to_owned()) })
}

fn document(dir: &Path, name: &str) -> Result<Vec<u8>, SourceError> {
    let path = dir.join(name);
    let (file, size) = open_file(dir, name)?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(read_error(&path))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(SourceError::TooLarge {
            input: Input::Path(dir.to_owned()),
            name: name.to_owned(),
            size,
        });
    }
    Ok(bytes)
}

/// A regular file of the layout, and its length.
fn open_file(dir: &Path, name: &str) -> Result<(File, u64), SourceError> {
    let path = dir.join(name);
    let missing = || SourceError::Missing { input: Input::Path(dir.to_owned()), name: name.to_owned() };
    match std::fs::metadata(&path) {
        // Opening a FIFO would wait for ever.
        Ok(found) if !found.is_file() => Err(missing()),
        Ok(found) => Ok((File::open(&path).map_err(read_error(&path))?, found.len())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(missing()),
        Err(e) => Err(read_error(&path)(e)),
    }
}

/// Opens a layer where it is, unverified.
pub(super) fn open_layer(dir: &Path, layer: &Descriptor) -> Result<File, SourceError> {
    open_file(dir, &blob_name(&layer.digest)).map(|(file, _)| file)
}

/// Copies a layer into the store, hashing it on the way.
pub(super) fn copy(
    dir: &Path,
    store: &Store,
    layer: &Descriptor,
    progress: Progress<'_>,
) -> Result<File, SourceError> {
    let name = blob_name(&layer.digest);
    let path = dir.join(&name);
    let (from, found) = open_file(dir, &name)?;
    let input = Input::Path(dir.to_owned());
    if found != layer.size {
        return Err(SourceError::WrongSize { input, digest: layer.digest, expected: layer.size, found });
    }
    let waiting = || progress(Event::Waiting { what: format!("layer {}", layer.digest) });
    let part = match store.ingest(layer, waiting)? {
        Ingest::Present(file) => return Ok(file),
        Ingest::Missing(part) => part,
    };
    // Reading the disk again is as fast as hashing what a killed process has left.
    let mut to = part.file();
    to.set_len(0).and_then(|()| to.rewind()).map_err(StoreError::io("write", part.path()))?;
    let (digest, found) = copy_hashed(from, to, layer, (&path, part.path()), progress)?;
    if found != layer.size {
        part.discard()?;
        return Err(SourceError::WrongSize { input, digest: layer.digest, expected: layer.size, found });
    }
    if digest != layer.digest {
        part.discard()?;
        return Err(SourceError::WrongDigest { input, expected: layer.digest, found: digest });
    }
    Ok(part.commit()?)
}

/// Copies at most one byte more than the layer has.
fn copy_hashed(
    from: File,
    mut to: &File,
    layer: &Descriptor,
    paths: (&Path, &Path),
    progress: Progress<'_>,
) -> Result<(Digest, u64), SourceError> {
    let mut from = from.take(layer.size + 1);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        progress(Event::Downloading { blob: layer.digest, done, total: layer.size });
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok((Digest::from_hash(hash), done)),
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read_error(paths.0)(e)),
        };
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count]).map_err(StoreError::io("write", paths.1))?;
        done += count as u64;
    }
}

fn read_error(path: &Path) -> impl FnOnce(std::io::Error) -> SourceError {
    let input = Input::Path(PathBuf::from(path));
    |source| SourceError::Read { input, source }
}
