//! Extent trees: which blocks of a file are where (filesystems/ext4/ifork.rst, "Extent Tree").

use super::checksum::crc;
use super::{BLOCK, put};

const MAGIC: u16 = 0xf30a;

/// Blocks of one initialized extent.
pub(super) const MAX_LENGTH: u32 = 32768;

/// Entries in an inode.
pub(super) const ROOT_ENTRIES: usize = 4;

/// Entries in a block, between its header and its checksum.
const BLOCK_ENTRIES: usize = (BLOCK - 12 - 4) / 12;

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block in the file.
    pub(super) logical: u32,
    /// First block in the file system.
    pub(super) physical: u32,
    /// How many; here of any length, on disk at most [`MAX_LENGTH`].
    pub(super) length: u32,
}

/// The extent tree of a file: the root for its inode, and the blocks below it, which have to go to `first_block`
/// and the blocks behind it. `seed` is the inode's.
pub(super) fn tree(extents: &[Extent], seed: u32, first_block: u32) -> ([u8; 60], Vec<[u8; BLOCK]>) {
    let mut entries: Vec<[u8; 12]> = extents.iter().flat_map(|&extent| leaf_entries(extent)).collect();
    let mut blocks = Vec::new();
    let mut depth: u16 = 0;
    while entries.len() > ROOT_ENTRIES {
        entries = entries
            .chunks(BLOCK_ENTRIES)
            .map(|chunk| {
                let number = first_block + blocks.len() as u32;
                let mut block = [0; BLOCK];
                node(&mut block[..BLOCK - 4], chunk, BLOCK_ENTRIES, depth);
                let checksum = crc(seed, &block[..BLOCK - 4]);
                put(&mut block, BLOCK - 4, checksum.to_le_bytes());
                blocks.push(block);
                index_entry(chunk[0], number)
            })
            .collect();
        depth += 1;
    }
    let mut root = [0; 60];
    node(&mut root, &entries, ROOT_ENTRIES, depth);
    (root, blocks)
}

fn leaf_entries(extent: Extent) -> impl Iterator<Item = [u8; 12]> {
    (0..extent.length).step_by(MAX_LENGTH as usize).map(move |done| {
        let mut entry = [0; 12];
        put(&mut entry, 0, (extent.logical + done).to_le_bytes());
        put(&mut entry, 4, ((extent.length - done).min(MAX_LENGTH) as u16).to_le_bytes());
        put(&mut entry, 8, (extent.physical + done).to_le_bytes());
        entry
    })
}

/// The entry for a node at block `number` whose first entry is `first`.
fn index_entry(first: [u8; 12], number: u32) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[..4].copy_from_slice(&first[..4]);
    put(&mut entry, 4, number.to_le_bytes());
    entry
}

fn node(area: &mut [u8], entries: &[[u8; 12]], max: usize, depth: u16) {
    put(area, 0, MAGIC.to_le_bytes());
    put(area, 2, (entries.len() as u16).to_le_bytes());
    put(area, 4, (max as u16).to_le_bytes());
    put(area, 6, depth.to_le_bytes());
    for (slot, entry) in area[12..].chunks_exact_mut(12).zip(entries) {
        slot.copy_from_slice(entry);
    }
}
