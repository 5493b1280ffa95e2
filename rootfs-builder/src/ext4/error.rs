//! What ext4 cannot hold.

use std::io;

/// Why a file system could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The output file.
    #[error("cannot write the file system")]
    Write(#[source] io::Error),
    /// Beyond 2^32 blocks.
    #[error("the image holds more than 16 TiB")]
    TooLarge,
    /// Beyond 2^32 blocks.
    #[error("a file of {0} bytes is larger than 16 TiB")]
    FileTooLarge(u64),
    /// They have to fit into one block.
    #[error("extended attributes of {0} bytes do not fit into 4096 bytes with their headers")]
    XattrsTooLarge(usize),
    /// What Linux would refuse to set.
    #[error("{0} is not a valid POSIX ACL")]
    InvalidAcl(String),
    /// Linux has 12 bits of major and 20 bits of minor number.
    #[error("device number {0}:{1} is out of range")]
    Device(u32, u32),
    /// ext4's limit.
    #[error("{0:?} is the 65,001st hard link to one file; ext4 holds 65,000")]
    TooManyLinks(String),
    /// The size asked for.
    #[error("{0} bytes are too large for a file system: the limit is 16 TiB")]
    SizeTooLarge(u64),
    /// The size asked for.
    #[error("{asked} bytes are too small for the image; it needs {needed}")]
    SizeTooSmall {
        /// Bytes asked for.
        asked: u64,
        /// Bytes needed at least.
        needed: u64,
    },
}
