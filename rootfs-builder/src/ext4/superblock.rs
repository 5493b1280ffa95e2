//! The superblock (filesystems/ext4/super.rst).

use super::checksum::crc;
use super::geometry::{GROUP, Geometry};
use super::inode::{INODE, JOURNAL, LAST_RESERVED};
use super::put;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_DIR_INDEX: u32 = 0x20;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_HUGE_FILE: u32 = 0x8;
const RO_COMPAT_DIR_NLINK: u32 = 0x20;
const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// Bytes of a superblock.
pub(super) const SUPERBLOCK: usize = 1024;

/// What differs from one file system to the next.
pub(super) struct Superblock {
    pub(super) geometry: Geometry,
    pub(super) uuid: [u8; 16],
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    /// i_block and size of the journal, kept here as a spare.
    pub(super) journal: Option<([u8; 60], u64)>,
}

/// What names are hashed with: 16 bytes that differ from image to image, and that are never all zero.
pub(super) fn hash_seed(uuid: &[u8; 16]) -> [u32; 4] {
    let (words, _) = uuid.as_chunks::<4>();
    let mut seed = [0; 4];
    for (word, bytes) in seed.iter_mut().zip(words) {
        *word = u32::from_le_bytes(*bytes);
    }
    // Zero would mean the default of MD4.
    seed[3] |= 1;
    seed
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; SUPERBLOCK] {
        let geometry = &self.geometry;
        let mut block = [0; SUPERBLOCK];
        put(&mut block, 0x00, (geometry.groups * geometry.inodes_per_group).to_le_bytes());
        put(&mut block, 0x04, geometry.blocks.to_le_bytes());
        put(&mut block, 0x0c, self.free_blocks.to_le_bytes());
        put(&mut block, 0x10, self.free_inodes.to_le_bytes());
        put(&mut block, 0x18, 2_u32.to_le_bytes()); // s_log_block_size: 4 KiB
        put(&mut block, 0x1c, 2_u32.to_le_bytes()); // s_log_cluster_size
        put(&mut block, 0x20, GROUP.to_le_bytes());
        put(&mut block, 0x24, GROUP.to_le_bytes()); // s_clusters_per_group
        put(&mut block, 0x28, geometry.inodes_per_group.to_le_bytes());
        put(&mut block, 0x36, u16::MAX.to_le_bytes()); // s_max_mnt_count: no periodic check
        put(&mut block, 0x38, 0xef53_u16.to_le_bytes()); // s_magic
        put(&mut block, 0x3a, 1_u16.to_le_bytes()); // s_state: clean
        put(&mut block, 0x3c, 1_u16.to_le_bytes()); // s_errors: continue
        put(&mut block, 0x4c, 1_u32.to_le_bytes()); // s_rev_level: dynamic
        put(&mut block, 0x54, (LAST_RESERVED + 1).to_le_bytes());
        put(&mut block, 0x58, (INODE as u16).to_le_bytes());
        // s_backup_bgs stays 0, 0: sparse_super2 without backups.
        let compat = COMPAT_EXT_ATTR | COMPAT_DIR_INDEX | COMPAT_SPARSE_SUPER2;
        let incompat = INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_FLEX_BG;
        let ro_compat = RO_COMPAT_LARGE_FILE
            | RO_COMPAT_HUGE_FILE
            | RO_COMPAT_DIR_NLINK
            | RO_COMPAT_EXTRA_ISIZE
            | RO_COMPAT_METADATA_CSUM;
        put(&mut block, 0x60, incompat.to_le_bytes());
        put(&mut block, 0x64, ro_compat.to_le_bytes());
        put(&mut block, 0x68, self.uuid);
        for (i, word) in hash_seed(&self.uuid).into_iter().enumerate() {
            put(&mut block, 0xec + 4 * i, word.to_le_bytes());
        }
        block[0xfc] = 1; // s_def_hash_version: half MD4
        put(&mut block, 0x100, 0xc_u32.to_le_bytes()); // s_default_mount_opts: user_xattr, acl
        put(&mut block, 0x15c, 32_u16.to_le_bytes()); // s_min_extra_isize
        put(&mut block, 0x15e, 32_u16.to_le_bytes()); // s_want_extra_isize
        put(&mut block, 0x160, 1_u32.to_le_bytes()); // s_flags: hashes over signed characters
        block[0x174] = 4; // s_log_groups_per_flex
        block[0x175] = 1; // s_checksum_type: CRC-32C
        if let Some((root, size)) = self.journal {
            put(&mut block, 0x5c, (compat | COMPAT_HAS_JOURNAL).to_le_bytes());
            put(&mut block, 0xe0, JOURNAL.to_le_bytes());
            block[0xfd] = 1; // s_jnl_backup_type: what follows
            put(&mut block, 0x10c, root);
            put(&mut block, 0x148, ((size >> 32) as u32).to_le_bytes());
            put(&mut block, 0x14c, (size as u32).to_le_bytes());
        } else {
            put(&mut block, 0x5c, compat.to_le_bytes());
        }
        let checksum = crc(!0, &block[..0x3fc]);
        put(&mut block, 0x3fc, checksum.to_le_bytes());
        block
    }
}
