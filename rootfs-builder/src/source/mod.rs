//! Where images come from: a registry, or something local (a layout directory, a tar archive, standard input).
//!
//! A local source is opened (an archive is streamed once, into a scratch directory of the store), resolved to a manifest
//! and configuration, and then asked for one layer after the other, each of which becomes a blob of the store.

mod archive;
mod docker_archive;
mod error;
mod layout;
mod oci;

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

pub use error::SourceError;
pub(crate) use oci::LocalImage;

use crate::convert::Limits;
use crate::image::Digest;
use crate::progress::Progress;
use crate::reference::{ImageName, LocalName, NameError};
use crate::store::Store;

/// Where to pull from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image that has a name: in a registry, or imported before.
    Name(ImageName),
    /// Something local.
    Local(Local),
}

/// A local source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Where it is.
    pub input: Input,
    /// What it has to be.
    pub format: Format,
    /// Which of its images, where it has several.
    pub tag: Option<String>,
}

/// Where a local source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file or directory.
    Path(PathBuf),
    /// Standard input.
    Stdin,
    /// What somebody sends.
    Stream(Stream),
}

/// An archive that somebody sends. Of its clones one alone reads it.
#[derive(Clone)]
pub struct Stream(Arc<Mutex<dyn Read + Send>>);

/// The formats of local sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An OCI layout: a directory, or a tar of one.
    Oci,
    /// What `docker save` writes.
    DockerArchive,
    /// Either, told by what is inside.
    Any,
}

impl Stream {
    /// Of what `reader` has; it may block.
    pub fn new(reader: impl Read + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(reader)))
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(out)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl PartialEq for Stream {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Stream {}

impl Source {
    /// Parses what a user types: `oci:PATH[:TAG]`, `docker-archive:PATH[:REFERENCE]`, `-`, and everything else by `name`.
    /// As with skopeo, a path in these forms ends at its first colon.
    pub fn parse(
        text: &str,
        name: impl FnOnce(&str) -> Result<ImageName, NameError>,
    ) -> Result<Self, NameError> {
        let local = |rest: &str, format| {
            let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
            let tag = tag.filter(|tag| !tag.is_empty()).map(str::to_owned);
            Ok(Self::Local(Local { input: Input::Path(path.into()), format, tag }))
        };
        match text.split_once(':') {
            _ if text == "-" => {
                Ok(Self::Local(Local { input: Input::Stdin, format: Format::Any, tag: None }))
            }
            Some(("oci", rest)) => local(rest, Format::Oci),
            Some(("docker-archive", rest)) => local(rest, Format::DockerArchive),
            _ => name(text).map(Self::Name),
        }
    }

    /// The name that the image gets when the user gives none: its own, or the file's name without its extensions and with
    /// the tag. `None` for standard input, and for a file whose name is no name.
    pub fn default_name(&self) -> Option<ImageName> {
        let local = match self {
            Self::Name(name) => return Some(name.clone()),
            Self::Local(local) => local,
        };
        let Input::Path(path) = &local.input else { return None };
        let mut name = path.file_name()?.to_str()?;
        for extension in [".gz", ".tgz", ".zst", ".tar", ".oci"] {
            name = name.strip_suffix(extension).unwrap_or(name);
        }
        let tag = local.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        format!("{name}{tag}").parse::<LocalName>().ok().map(ImageName::from)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Local(local) => local.fmt(f),
        }
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.input.fmt(f)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
            Self::Stream(_) => f.write_str("request body"),
        }
    }
}

impl Local {
    /// Opens it and finds the image. Blocks; reads an archive to its end.
    pub(crate) fn open(
        &self,
        store: &Store,
        platform: &crate::image::Platform,
        limits: Limits,
        progress: Progress<'_>,
    ) -> Result<LocalImage, SourceError> {
        let blobs = match &self.input {
            Input::Path(path) if path.is_dir() => {
                if self.format == Format::DockerArchive {
                    return Err(SourceError::Unrecognised {
                        input: self.input.clone(),
                        expected: "a tar of docker save",
                    });
                }
                return layout::open(path, self.tag.as_deref(), platform);
            }
            Input::Path(path) => {
                let failed = |source| SourceError::Read { input: self.input.clone(), source };
                let file = std::fs::File::open(path).map_err(failed)?;
                archive::read(store, &self.input, file, limits, progress)?
            }
            Input::Stdin => archive::read(store, &self.input, io::stdin(), limits, progress)?,
            Input::Stream(stream) => archive::read(store, &self.input, stream.clone(), limits, progress)?,
        };
        // Since docker 25 `docker save` writes both; the layout is the exact one.
        if self.format != Format::DockerArchive && blobs.has("index.json") && blobs.has("oci-layout") {
            return oci::open_archive(blobs, self.tag.as_deref(), platform);
        }
        if self.format != Format::Oci && blobs.has("manifest.json") {
            return docker_archive::open(blobs, self.tag.as_deref());
        }
        Err(SourceError::Unrecognised {
            input: self.input.clone(),
            expected: match self.format {
                Format::Oci => "an OCI layout (oci-layout and index.json)",
                Format::DockerArchive => "a tar of docker save (manifest.json)",
                Format::Any => {
                    "an OCI layout (oci-layout and index.json) or a tar of docker save (manifest.json)"
                }
            },
        })
    }
}

/// The digest and length of what `reader` has.
pub(crate) fn hash(mut reader: impl Read) -> io::Result<(Digest, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((Digest::from_hash(hash), length)),
            Ok(count) => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(text, |text| crate::reference::resolve(text, &[].into(), |_| false)).unwrap()
    }

    fn local(path: &str, format: Format, tag: Option<&str>) -> Source {
        Source::Local(Local { input: Input::Path(path.into()), format, tag: tag.map(str::to_owned) })
    }

    #[test]
    fn forms() {
        assert_eq!(parse("oci:/a/b"), local("/a/b", Format::Oci, None));
        assert_eq!(parse("oci:b:v1"), local("b", Format::Oci, Some("v1")));
        assert_eq!(parse("oci:b:docker.io/x:v1"), local("b", Format::Oci, Some("docker.io/x:v1")));
        assert_eq!(parse("docker-archive:x.tar"), local("x.tar", Format::DockerArchive, None));
        assert!(matches!(parse("-"), Source::Local(Local { input: Input::Stdin, .. })));
        assert!(matches!(parse("oci/x"), Source::Name(_)));
        assert!(matches!(parse("python:3.12"), Source::Name(_)));
    }

    #[test]
    fn default_names() {
        for (text, name) in [
            ("oci:/a/tool", Some("tool")),
            ("oci:/a/tool.oci.tar.zst:v2", Some("tool:v2")),
            ("docker-archive:tool.tar.gz", Some("tool")),
            ("docker-archive:tool.tgz", Some("tool")),
            ("oci:/a/..", None),
            ("-", None),
        ] {
            assert_eq!(parse(text).default_name().map(|name| name.to_string()).as_deref(), name, "{text}");
        }
    }
}
