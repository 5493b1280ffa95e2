//! How large the file system is and how many of what it has: fixed from the start, since without backups of the
//! superblock Linux does not resize it while mounted.

use super::inode::INODE;
use super::{BLOCK, Ext4Error};

/// Blocks of a group: one block of bitmap.
pub(super) const GROUP: u32 = 8 * BLOCK as u32;

/// Bytes of a group descriptor.
pub(super) const DESCRIPTOR: usize = 32;

/// The size where none is asked for, unless the content is larger than half of it.
const DEFAULT_SIZE: u64 = 10 << 30;

/// Bytes for which there is at least one free inode.
const BYTES_PER_INODE: u64 = 16 << 10;

/// Inodes of a group: one block of bitmap.
const MAX_INODES: u32 = GROUP;

const INODES_PER_BLOCK: u32 = (BLOCK / INODE) as u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) blocks: u32,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    /// 0: none.
    pub(super) journal_blocks: u32,
}

/// Blocks in front of the data: superblock and descriptors, for a file system of `size` bytes or of any size.
/// What is not needed in the end is free.
pub(crate) fn reserved_blocks(size: Option<u64>) -> u32 {
    let blocks = size.map_or(u64::from(u32::MAX), |size| size / BLOCK as u64).min(u64::from(u32::MAX)) as u32;
    1 + descriptor_blocks(blocks.div_ceil(GROUP))
}

pub(super) fn descriptor_blocks(groups: u32) -> u32 {
    (groups as usize * DESCRIPTOR).div_ceil(BLOCK) as u32
}

impl Geometry {
    /// For `used` blocks from the start and inodes numbered up to `last_inode`; `size` in bytes, or the default.
    pub(super) fn choose(
        size: Option<u64>,
        journal: bool,
        used: u32,
        last_inode: u32,
    ) -> Result<Self, Ext4Error> {
        // Where no size was asked for, the most descriptors have been reserved.
        let reserved = reserved_blocks(size);
        let fits = |bytes: u64| {
            let geometry = Self::of_size(bytes, journal, last_inode)?;
            let used = used + reserved_blocks(Some(bytes)).saturating_sub(reserved);
            (u64::from(used) + geometry.metadata_blocks() <= u64::from(geometry.blocks)).then_some(geometry)
        };
        if let Some(asked) = size
            && asked / BLOCK as u64 >= u64::from(u32::MAX)
        {
            return Err(Ext4Error::SizeTooLarge(asked));
        }
        let content = u64::from(used) * BLOCK as u64;
        let start = size.unwrap_or_else(|| DEFAULT_SIZE.max(2 * content));
        if let Some(geometry) = fits(start) {
            return Ok(geometry);
        }
        // Larger by a 64th at a time, in whole MiB: close enough to the least for a message, and never far off.
        let mut needed = start.max(content);
        loop {
            needed = (needed + (needed / 64).max(1 << 20)).next_multiple_of(1 << 20);
            if needed / BLOCK as u64 >= u64::from(u32::MAX) {
                return Err(Ext4Error::TooLarge);
            }
            if let Some(geometry) = fits(needed) {
                return match size {
                    Some(asked) => Err(Ext4Error::SizeTooSmall { asked, needed }),
                    None => Ok(geometry),
                };
            }
        }
    }

    /// `None` where so few groups cannot hold so many inodes.
    fn of_size(bytes: u64, journal: bool, last_inode: u32) -> Option<Self> {
        let blocks = u32::try_from(bytes / BLOCK as u64).ok().filter(|&blocks| blocks > 0)?;
        let groups = blocks.div_ceil(GROUP);
        let inodes = u64::from(last_inode) + bytes.div_ceil(BYTES_PER_INODE);
        let inodes_per_group =
            inodes.div_ceil(u64::from(groups)).next_multiple_of(u64::from(INODES_PER_BLOCK));
        let inodes_per_group = u32::try_from(inodes_per_group).ok().filter(|&inodes| inodes <= MAX_INODES)?;
        // As mke2fs, but never above 64 MiB: a sandbox does not write enough at once for more.
        let journal_blocks = match blocks {
            _ if !journal => 0,
            ..32_768 => 1024,
            32_768..262_144 => 4096,
            262_144..524_288 => 8192,
            _ => 16384,
        };
        Some(Self { blocks, groups, inodes_per_group, journal_blocks })
    }

    /// Blocks of one group's inode table.
    pub(super) fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// Blocks behind the data: bitmaps, inode tables, journal.
    pub(super) fn metadata_blocks(&self) -> u64 {
        u64::from(self.groups) * (2 + u64::from(self.table_blocks())) + u64::from(self.journal_blocks)
    }

    /// Blocks of a group: the last may be shorter.
    pub(super) fn blocks_of(&self, group: u32) -> u32 {
        (self.blocks - group * GROUP).min(GROUP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn sizes() {
        let size = |size, used| {
            Geometry::choose(size, true, used, 100).map(|geometry| u64::from(geometry.blocks) * BLOCK as u64)
        };
        assert_eq!(size(None, 1000).unwrap(), 10 * GIB);
        assert_eq!(size(None, (6 * GIB / BLOCK as u64) as u32).unwrap(), 12 * GIB);
        assert_eq!(size(Some(3 * GIB), 1000).unwrap(), 3 * GIB);
        let Err(Ext4Error::SizeTooSmall { asked: 1_048_576, needed }) = size(Some(1 << 20), 1000) else {
            panic!("a MiB cannot hold 1000 blocks");
        };
        assert!(size(Some(needed), 1000).is_ok(), "what is said to be needed is enough");
    }

    #[test]
    fn a_free_inode_per_16_kib() {
        for last_inode in [11, 1_000_000, 4_000_000] {
            let geometry = Geometry::choose(None, true, 2000, last_inode).unwrap();
            let inodes = u64::from(geometry.groups) * u64::from(geometry.inodes_per_group);
            let free = inodes - u64::from(last_inode);
            assert!(free >= u64::from(geometry.blocks) * BLOCK as u64 / BYTES_PER_INODE, "{geometry:?}");
        }
    }
}
