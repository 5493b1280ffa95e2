//! Writes an ext4 file system in one forward pass, as an ordinary user (kernel documentation, filesystems/ext4).
//!
//! Blocks are 4 KiB. File data go out as they come, each file in one contiguous run behind the last ([`writer`]).
//! When the tree is known, [`finish`] puts directories, inode tables, bitmaps and the journal behind the data
//! and the descriptors and superblock in front; `flex_bg` allows metadata anywhere, and `sparse_super2` without
//! backups leaves nothing in the way of the data. Blocks that nothing refers to in the end become holes.
//!
//! Same calls, same bytes: no clock, no random number, no order of a hash table reaches the output.

mod acl;
mod checksum;
mod directory;
mod error;
mod extents;
mod finish;
mod geometry;
mod groups;
mod hash;
mod inode;
mod journal;
mod superblock;
mod writer;
mod xattr;

pub use error::Ext4Error;
pub use finish::Summary;
pub(crate) use geometry::reserved_blocks;
pub use inode::device_is_valid;
pub use writer::{FileMap, FileWriter, Writer};
pub use xattr::Xattrs;

/// Raised whenever the same input gives other bytes, so that the store converts anew.
pub const WRITER_VERSION: u32 = 1;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Writes `bytes` at offset `at`: `put(block, 0x38, 0xEF53_u16.to_le_bytes())`.
fn put<const N: usize>(block: &mut [u8], at: usize, bytes: [u8; N]) {
    block[at..at + N].copy_from_slice(&bytes);
}
