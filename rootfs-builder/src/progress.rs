//! What happens during a pull, for whoever draws it.

use crate::image::Digest;

/// One step of a pull. Byte counts are absolute, so a lost event does no harm. As JSON the kind is the member `event`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = PullStep))]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// The image is known: `layers` blobs, `bytes` in all as they are stored at the source, are needed.
    Resolved {
        /// The manifest's digest.
        manifest: Digest,
        /// Number of layers.
        layers: usize,
        /// Compressed bytes of all layers.
        bytes: u64,
    },
    /// A blob is in the store already.
    Present {
        /// Which.
        blob: Digest,
        /// Its bytes.
        size: u64,
    },
    /// `done` of `total` bytes of a blob have arrived. The first such event of a blob may start above 0: a resumed one.
    Downloading {
        /// Which.
        blob: Digest,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A download failed and is tried again after `delay_ms`.
    Retrying {
        /// What was being fetched.
        what: String,
        /// Why it failed.
        reason: String,
        /// The wait in ms.
        delay_ms: u64,
    },
    /// A blob is verified and in the store.
    Downloaded {
        /// Which.
        blob: Digest,
    },
    /// Another process pulls the same; this one waits for it.
    Waiting {
        /// For what.
        what: String,
    },
    /// `layer` of `layers` is being written into the file system.
    Converting {
        /// Counted from 1.
        layer: usize,
        /// In all.
        layers: usize,
    },
    /// The file system is whole and in the store.
    Converted {
        /// The image file's length in bytes.
        size_bytes: u64,
    },
}

/// Receives events, from any thread. It must not block for long.
pub type Progress<'a> = &'a (dyn Fn(Event) + Send + Sync);
