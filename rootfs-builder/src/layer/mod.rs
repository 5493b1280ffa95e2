//! Reading a layer: compressed tar in, entries and their data out (OCI image specification, layer.md).
//!
//! `decompress` recognises the compression; `pipeline` runs it on a thread of its own, one layer ahead of the
//! consumer, within bounded buffers; `tar` frames the entries and `header` parses their headers; `pax` and
//! `sparse` parse what those could not hold. Nothing here knows file systems.

mod decompress;
mod entry;
mod header;
mod pax;
mod pipeline;
mod sparse;
mod tar;

pub use decompress::{Compression, decompress, is_tar_layer};
pub use entry::{Entry, EntryKind, Timestamp};
pub use pipeline::{Expansion, Layer, LayerStream, Pipeline};
pub use sparse::Region;
pub use tar::{TarError, TarReader};
