//! What can be wrong with a local source.

use std::io;

use super::Input;
use crate::image::{Digest, InvalidDigest, ManifestError, listed};
use crate::layer::{Expansion, TarError};
use crate::store::StoreError;

/// A local source that cannot be used. Each names the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be opened or read.
    #[error("cannot read {input}")]
    Read {
        /// The source.
        input: Input,
        /// Why.
        source: io::Error,
    },
    /// It is no tar, or a broken one.
    #[error("the archive {input} is damaged")]
    Archive {
        /// The source.
        input: Input,
        /// How.
        source: TarError,
    },
    /// It expands beyond [`crate::convert::Limits`].
    #[error("the archive {input}")]
    Expansion {
        /// The source.
        input: Input,
        /// By how much.
        source: Expansion,
    },
    /// An archive that holds more than an image can.
    #[error("the archive {input} has more than {limit} {what}")]
    TooMany {
        /// The source.
        input: Input,
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Neither of the formats.
    #[error("{input} is not {expected}")]
    Unrecognised {
        /// The source.
        input: Input,
        /// What was expected.
        expected: &'static str,
    },
    /// A file that has to be there is not.
    #[error("{input} has no {name}")]
    Missing {
        /// The source.
        input: Input,
        /// The file.
        name: String,
    },
    /// JSON that cannot be parsed.
    #[error("{name} in {input} is malformed")]
    Malformed {
        /// The source.
        input: Input,
        /// The file.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A descriptor whose digest is none.
    #[error("{name} in {input} is malformed")]
    Digest {
        /// The source.
        input: Input,
        /// The file.
        name: String,
        /// Why.
        source: InvalidDigest,
    },
    /// A document that is larger than any manifest, index or configuration is.
    #[error("{name} in {input} has {size} bytes, more than {}", crate::image::MAX_DOCUMENT)]
    TooLarge {
        /// The source.
        input: Input,
        /// The file.
        name: String,
        /// Its size.
        size: u64,
    },
    /// The bytes are not those that the descriptor names.
    #[error("blob {expected} in {input} is damaged: its digest is {found}")]
    WrongDigest {
        /// The source.
        input: Input,
        /// In the descriptor.
        expected: Digest,
        /// What the bytes have.
        found: Digest,
    },
    /// The blob is longer or shorter than the descriptor says.
    #[error("blob {digest} in {input} has {found} bytes where its descriptor states {expected}")]
    WrongSize {
        /// The source.
        input: Input,
        /// The blob.
        digest: Digest,
        /// In the descriptor.
        expected: u64,
        /// What there is (at least).
        found: u64,
    },
    /// Several images and no tag, or a tag that is not there.
    #[error("{}", ambiguous(input, wanted.as_deref(), offered))]
    Tag {
        /// The source.
        input: Input,
        /// The tag that was asked for.
        wanted: Option<String>,
        /// The tags there are.
        offered: Vec<String>,
    },
    /// Indexes in indexes in indexes.
    #[error("the indexes in {input} are nested more than {} deep", crate::image::MAX_INDEX_DEPTH)]
    TooDeep {
        /// The source.
        input: Input,
    },
    /// The image's documents are not what they have to be.
    #[error("{input} does not hold a usable image")]
    Manifest {
        /// The source.
        input: Input,
        /// Why.
        source: ManifestError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn ambiguous(input: &Input, wanted: Option<&str>, offered: &[String]) -> String {
    let offered = if offered.is_empty() { "none".into() } else { listed(offered) };
    match wanted {
        Some(wanted) => format!("{input} has no image with the tag {wanted:?}; its tags: {offered}"),
        None => format!(
            "{input} has several images: name one of its tags, as in oci:PATH:TAG or import --tag TAG: {offered}"
        ),
    }
}
