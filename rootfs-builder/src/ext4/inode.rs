//! Inodes (filesystems/ext4/inodes.rst): 256 bytes, 32 of them beyond the old 128, attributes behind those.

use super::checksum::{crc, inode_seed};
use super::xattr::InlineXattrs;
use super::{BLOCK, Ext4Error, FileMap, Xattrs, put};
use crate::layer::Timestamp;
use crate::tree::{Content, Inode, InodeId};

/// Bytes of an inode.
pub(super) const INODE: usize = 256;

/// The journal's inode.
pub(super) const JOURNAL: u32 = 8;

/// Number of the last reserved inode; lost+found is the next.
pub(super) const LAST_RESERVED: u32 = 10;

const EXTENTS_FLAG: u32 = 0x8_0000;
const INDEX_FLAG: u32 = 0x1000;

/// Targets of fewer bytes stand in the inode.
pub(super) const INLINE_TARGET: usize = 60;

/// Links of a directory beyond which it is not counted (dir_nlink), and that a file cannot pass.
pub(super) const MAX_LINKS: u32 = 65000;

/// The inode number: 2 for the root, 11 for lost+found, then on in the order of their making.
pub(super) fn number(id: InodeId) -> u32 {
    match id.index() {
        0 => 2,
        index => LAST_RESERVED + index,
    }
}

/// Whether Linux can hold this device number: 12 and 20 bits (linux/kdev_t.h, new_encode_dev).
pub fn device_is_valid(major: u32, minor: u32) -> Result<(), Ext4Error> {
    if major > 0xfff || minor > 0xf_ffff { Err(Ext4Error::Device(major, minor)) } else { Ok(()) }
}

/// The code of an object's type in a directory entry.
pub(super) fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::CharDevice(..) => 3,
        Content::BlockDevice(..) => 4,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    }
}

/// An inode as it is stored. `map` is where the content is, for a file, directory or long symbolic link.
pub(super) fn encode(
    file_system_seed: u32,
    number: u32,
    Inode { metadata, content }: &Inode,
    links: u32,
    map: Option<&FileMap>,
    inline_xattrs: &InlineXattrs,
) -> [u8; INODE] {
    let mut inode = [0; INODE];
    let (kind, mut size, mut flags) = match content {
        Content::Fifo => (0o010_000, 0, 0),
        Content::CharDevice(..) => (0o020_000, 0, 0),
        Content::Directory(_) => (0o040_000, 0, EXTENTS_FLAG),
        Content::BlockDevice(..) => (0o060_000, 0, 0),
        Content::File(_) => (0o100_000, 0, EXTENTS_FLAG),
        Content::Symlink(target) => (0o120_000, target.len() as u64, 0),
    };
    let mut block = [0; 60];
    let mut sectors = 0;
    match content {
        Content::Symlink(target) if target.len() < INLINE_TARGET => {
            block[..target.len()].copy_from_slice(target);
        }

        &Content::CharDevice(major, minor) | &Content::BlockDevice(major, minor) => {
            if major < 256 && minor < 256 {
                put(&mut block, 0, (major << 8 | minor).to_le_bytes());
            } else {
                put(&mut block, 4, (minor & 0xff | major << 8 | (minor & !0xff) << 12).to_le_bytes());
            }
        }
        _ => {}
    }
    if let Some(map) = map {
        block = map.root();
        sectors = u64::from(map.count) * (BLOCK as u64 / 512);
        size = map.size;
        flags |= EXTENTS_FLAG;
        if map.is_indexed {
            flags |= INDEX_FLAG;
        }
    }
    if let Xattrs::Block(number) = metadata.xattrs {
        put(&mut inode, 0x68, number.to_le_bytes());
        sectors += BLOCK as u64 / 512;
    }
    let (time, time_extra) = encode_time(metadata.mtime);
    put(&mut inode, 0x00, (kind | metadata.mode).to_le_bytes());
    put(&mut inode, 0x02, (metadata.uid as u16).to_le_bytes());
    put(&mut inode, 0x04, (size as u32).to_le_bytes());
    for at in [0x08, 0x0c, 0x10, 0x90] {
        put(&mut inode, at, time.to_le_bytes()); // atime, ctime, mtime, crtime
    }
    put(&mut inode, 0x18, (metadata.gid as u16).to_le_bytes());
    put(&mut inode, 0x1a, (links as u16).to_le_bytes());
    put(&mut inode, 0x1c, (sectors as u32).to_le_bytes());
    put(&mut inode, 0x20, flags.to_le_bytes());
    put(&mut inode, 0x28, block);
    put(&mut inode, 0x6c, ((size >> 32) as u32).to_le_bytes());
    put(&mut inode, 0x74, ((sectors >> 32) as u16).to_le_bytes());
    put(&mut inode, 0x78, ((metadata.uid >> 16) as u16).to_le_bytes());
    put(&mut inode, 0x7a, ((metadata.gid >> 16) as u16).to_le_bytes());
    put(&mut inode, 0x80, 32_u16.to_le_bytes()); // i_extra_isize
    for at in [0x84, 0x88, 0x8c, 0x94] {
        put(&mut inode, at, time_extra.to_le_bytes());
    }
    if let Xattrs::Inode(number) = metadata.xattrs {
        put(&mut inode, 0xa0, *inline_xattrs.room(number));
    }
    let checksum = crc(inode_seed(file_system_seed, number), &inode);
    put(&mut inode, 0x7c, (checksum as u16).to_le_bytes());
    put(&mut inode, 0x82, ((checksum >> 16) as u16).to_le_bytes());
    inode
}

/// 32 bits of seconds, then 30 bits of nanoseconds above the two that carry seconds to 2446
/// (inodes.rst, "Inode Timestamps"). Times outside 1901 to 2446 become the nearest within, as in Linux.
fn encode_time(time: Timestamp) -> (u32, u32) {
    const MIN: i64 = i32::MIN as i64;
    const MAX: i64 = (1 << 34) + MIN - 1;
    let seconds = time.seconds.clamp(MIN, MAX);
    let nanoseconds = if seconds == time.seconds { time.nanoseconds } else { 0 };
    let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32;
    (seconds as u32, nanoseconds << 2 | epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_through_four_epochs() {
        let encode = |seconds| encode_time(Timestamp { seconds, nanoseconds: 5 });
        assert_eq!(encode(0), (0, 5 << 2));
        assert_eq!(encode(-1), (u32::MAX, 5 << 2));
        assert_eq!(encode(0x7fff_ffff), (0x7fff_ffff, 5 << 2));
        assert_eq!(encode(0x8000_0000), (0x8000_0000, 5 << 2 | 1), "2038");
        assert_eq!(encode(0x1_0000_0000), (0, 5 << 2 | 1), "2106");
        assert_eq!(encode(0x3_7fff_ffff), (0x7fff_ffff, 5 << 2 | 3), "2446");
        assert_eq!(encode(i64::MAX), (0x7fff_ffff, 3), "clamped");
        assert_eq!(encode(i64::MIN), (0x8000_0000, 0), "clamped");
    }
}
