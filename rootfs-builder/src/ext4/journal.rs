//! An empty journal (filesystems/ext4/journal.rst): a superblock, in big-endian as all of it, and holes.

use super::{BLOCK, put};

/// The journal's first block.
pub(super) fn superblock(blocks: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0x00, 0xc03b_3998_u32.to_be_bytes()); // h_magic
    put(&mut block, 0x04, 4_u32.to_be_bytes()); // superblock, version 2
    put(&mut block, 0x0c, (BLOCK as u32).to_be_bytes()); // s_blocksize
    put(&mut block, 0x10, blocks.to_be_bytes()); // s_maxlen
    put(&mut block, 0x14, 1_u32.to_be_bytes()); // s_first
    put(&mut block, 0x18, 1_u32.to_be_bytes()); // s_sequence; s_start 0: nothing to replay
    // s_uuid stays zero: with another value here e2fsck looks for an external journal.
    put(&mut block, 0x40, 1_u32.to_be_bytes()); // s_nr_users
    block
}
