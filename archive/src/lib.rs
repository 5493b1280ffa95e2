//! A file or a tree as a tar stream, and back beneath a directory. The guest's agent and the host have the same two ways: [`pack()`]
//! and [`unpack()`]. Who sends a stream is not trusted: nothing it says leaves the directory, or takes memory without a bound.

mod pack;
mod tar;
mod unpack;

pub use pack::{Pack, pack};
pub use tar::TarError;
pub use unpack::{Temporary, Unpack, make_directory, unpack, write};

use rustix::io::Errno;

/// A tree that was not packed or unpacked as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a directory cannot be read or written.
    #[error("{path}: {}", std::io::Error::from(*.errno))]
    File {
        /// Which.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// The stream holds what is not unpacked, or is damaged.
    #[error("the archive is not unpacked")]
    Archive(#[from] TarError),
    /// An entry leaves the directory; which, and how.
    #[error("{0}")]
    Leaves(String),
    /// The stream could not be written.
    #[error("the archive could not be written")]
    Write(#[source] std::io::Error),
}

fn file_error(path: &std::path::Path, errno: Errno) -> Error {
    Error::File { path: path.display().to_string(), errno }
}
