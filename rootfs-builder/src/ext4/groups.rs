//! Block groups: which blocks and inodes are in use, and the descriptors that say so
//! (filesystems/ext4/group_descr.rst, bitmaps.rst).

use super::checksum::crc;
use super::geometry::{DESCRIPTOR, GROUP, Geometry};
use super::{BLOCK, put};

const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
const INODE_ZEROED: u16 = 4;

/// Bitmaps of the whole file system, up to the last block and inode in use, and directories counted by group.
pub(super) struct Usage {
    geometry: Geometry,
    blocks: Vec<u8>,
    inodes: Vec<u8>,
    directories: Vec<u16>,
}

/// What a group's descriptor and the superblock say of it.
pub(super) struct Group {
    /// Of the bitmap; `None` where there is none.
    block_checksum: Option<u16>,
    inode_checksum: Option<u16>,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    /// Inodes from the first to the last in use.
    pub(super) table_inodes: u32,
    directories: u16,
}

/// Where the metadata of all groups are, one kind behind the other.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) block_bitmaps: u32,
    pub(super) inode_bitmaps: u32,
    pub(super) tables: u32,
}

impl Usage {
    pub(super) fn new(geometry: Geometry, blocks_in_use: u32) -> Self {
        Self {
            geometry,
            blocks: vec![0; blocks_in_use.div_ceil(GROUP) as usize * BLOCK],
            inodes: vec![0; geometry.groups as usize * geometry.inodes_per_group as usize / 8],
            directories: vec![0; geometry.groups as usize],
        }
    }

    pub(super) fn use_blocks(&mut self, start: u32, count: u32) {
        let (mut at, end) = (start as usize, start as usize + count as usize);
        while at < end {
            if at % 8 == 0 && end - at >= 8 {
                let bytes = (end - at) / 8;
                self.blocks[at / 8..at / 8 + bytes].fill(0xff);
                at += 8 * bytes;
            } else {
                self.blocks[at / 8] |= 1 << (at % 8);
                at += 1;
            }
        }
    }

    pub(super) fn use_inode(&mut self, number: u32, is_directory: bool) {
        let index = number as usize - 1;
        self.inodes[index / 8] |= 1 << (index % 8);
        self.directories[index / self.geometry.inodes_per_group as usize] += u16::from(is_directory);
    }

    /// Runs of blocks between `start` and `end` that are not in use.
    pub(super) fn free_runs(&self, start: u32, end: u32) -> impl Iterator<Item = (u32, u32)> {
        let is_free = |block: u32| self.blocks[block as usize / 8] & 1 << (block % 8) == 0;
        let mut at = start;
        std::iter::from_fn(move || {
            let first = (at..end).find(|&block| is_free(block))?;
            let next = (first..end).find(|&block| !is_free(block)).unwrap_or(end);
            at = next;
            Some((first, next - first))
        })
    }

    /// The group's block bitmap as it is stored. `None`: all blocks are free, and the kernel makes it itself. Not so
    /// for a last group, which may be short, and not where inodes are in use: e2fsck expects those to be unused then.
    pub(super) fn block_bitmap(&self, group: u32) -> Option<[u8; BLOCK]> {
        let in_use = self.blocks_in_use(group);
        let is_last = group + 1 == self.geometry.groups;
        let is_needed = is_last || in_use.is_some_and(|b| b != &[0; BLOCK]) || self.table_inodes(group) > 0;
        is_needed.then(|| {
            let mut bitmap = in_use.copied().unwrap_or([0; BLOCK]);
            for block in self.geometry.blocks_of(group)..GROUP {
                bitmap[block as usize / 8] |= 1 << (block % 8);
            }
            bitmap
        })
    }

    /// The group's inode bitmap as it is stored. `None`: all inodes are free.
    pub(super) fn inode_bitmap(&self, group: u32) -> Option<[u8; BLOCK]> {
        let inodes = self.inodes_in_use(group);
        (self.table_inodes(group) > 0).then(|| {
            let mut bitmap = [0xff; BLOCK];
            bitmap[..inodes.len()].copy_from_slice(inodes);
            bitmap
        })
    }

    pub(super) fn group(&self, group: u32, seed: u32) -> Group {
        let inodes = self.inodes_in_use(group);
        let used = self.blocks_in_use(group).map_or(0, |bitmap| count_ones(bitmap));
        Group {
            block_checksum: self.block_bitmap(group).map(|bitmap| crc(seed, &bitmap) as u16),
            inode_checksum: self.inode_bitmap(group).map(|_| crc(seed, inodes) as u16),
            free_blocks: self.geometry.blocks_of(group) - used,
            free_inodes: self.geometry.inodes_per_group - count_ones(inodes),
            table_inodes: self.table_inodes(group),
            directories: self.directories[group as usize],
        }
    }

    /// `None` beyond the last block in use.
    fn blocks_in_use(&self, group: u32) -> Option<&[u8; BLOCK]> {
        self.blocks.get(group as usize * BLOCK..)?.first_chunk()
    }

    fn inodes_in_use(&self, group: u32) -> &[u8] {
        let bytes = self.geometry.inodes_per_group as usize / 8;
        &self.inodes[group as usize * bytes..][..bytes]
    }

    fn table_inodes(&self, group: u32) -> u32 {
        let inodes = self.inodes_in_use(group);
        let last = inodes.iter().rposition(|&byte| byte != 0);
        last.map_or(0, |last| 8 * last as u32 + 8 - inodes[last].leading_zeros())
    }
}

impl Group {
    pub(super) fn descriptor(
        &self,
        group: u32,
        geometry: &Geometry,
        places: Places,
        seed: u32,
    ) -> [u8; DESCRIPTOR] {
        let mut descriptor = [0; DESCRIPTOR];
        put(&mut descriptor, 0x00, (places.block_bitmaps + group).to_le_bytes());
        put(&mut descriptor, 0x04, (places.inode_bitmaps + group).to_le_bytes());
        put(&mut descriptor, 0x08, (places.tables + group * geometry.table_blocks()).to_le_bytes());
        put(&mut descriptor, 0x0c, (self.free_blocks as u16).to_le_bytes());
        put(&mut descriptor, 0x0e, (self.free_inodes as u16).to_le_bytes());
        put(&mut descriptor, 0x10, self.directories.to_le_bytes());
        // The tables' unused parts are holes: nothing has to zero them in the background.
        let mut flags = INODE_ZEROED;
        match self.block_checksum {
            Some(checksum) => put(&mut descriptor, 0x18, checksum.to_le_bytes()),
            None => flags |= BLOCK_UNINIT,
        }
        match self.inode_checksum {
            Some(checksum) => put(&mut descriptor, 0x1a, checksum.to_le_bytes()),
            None => flags |= INODE_UNINIT,
        }
        put(&mut descriptor, 0x12, flags.to_le_bytes());
        let unused = geometry.inodes_per_group - self.table_inodes;
        put(&mut descriptor, 0x1c, (unused as u16).to_le_bytes());
        let checksum = crc(crc(seed, &group.to_le_bytes()), &descriptor);
        put(&mut descriptor, 0x1e, (checksum as u16).to_le_bytes());
        descriptor
    }
}

fn count_ones(bytes: &[u8]) -> u32 {
    bytes.iter().map(|byte| byte.count_ones()).sum()
}
