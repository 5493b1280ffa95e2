//! Extended attributes: in the inode where they fit, else in one block (filesystems/ext4/attributes.rst).

use std::borrow::Cow;
use std::collections::HashMap;

use super::checksum::crc;
use super::{BLOCK, Ext4Error, acl, put};

const MAGIC: u32 = 0xea02_0000;

/// Room behind the fields of a 256-byte inode, the magic number included.
pub(super) const INODE_ROOM: usize = 96;

/// Bytes in front of the entries of a block.
const BLOCK_HEADER: usize = 32;

/// Bytes of an entry in front of its name.
const ENTRY_HEADER: usize = 16;

/// Where an object's extended attributes are.
#[derive(Debug, Default)]
pub enum Xattrs {
    /// It has none.
    #[default]
    None,
    /// Behind the fields of its inode: number in the [`InlineXattrs`].
    Inode(u32),
    /// In this block.
    Block(u32),
}

/// Attributes for inodes. Most files of an image that have any have the same; each is kept once. There is room for so
/// many, in 1.5 MiB; others go to blocks, so that their number costs no memory.
const MAX_INLINE: usize = 16384;

/// What stands behind the fields of inodes, each kept once.
#[derive(Default)]
pub(super) struct InlineXattrs {
    rooms: Vec<[u8; INODE_ROOM]>,
    numbers: HashMap<[u8; INODE_ROOM], u32>,
}

impl InlineXattrs {
    /// The number of these attributes; `None` when there is no room for more.
    fn number(&mut self, attributes: &[Attribute<'_>]) -> Option<u32> {
        let mut room = [0; INODE_ROOM];
        put(&mut room, 0, MAGIC.to_le_bytes());
        fill(&mut room, 4, 4, attributes);
        if let Some(&number) = self.numbers.get(&room) {
            return Some(number);
        }
        let number = self.rooms.len() as u32;
        (self.rooms.len() < MAX_INLINE).then(|| {
            self.rooms.push(room);
            self.numbers.insert(room, number);
            number
        })
    }

    pub(super) fn room(&self, number: u32) -> &[u8; INODE_ROOM] {
        &self.rooms[number as usize]
    }
}

/// What there is to store.
pub(super) enum Encoded {
    None,
    Inode(u32),
    Block(Box<[u8; BLOCK]>),
}

struct Attribute<'a> {
    index: u8,
    name: &'a [u8],
    value: Cow<'a, [u8]>,
}

impl<'a> Attribute<'a> {
    /// `None` for a name that Linux does not have.
    fn new(full_name: &'a [u8], value: &'a [u8]) -> Option<Self> {
        const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
        let (index, name): (u8, &[u8]) = match full_name {
            b"system.posix_acl_access" => (2, b""),
            b"system.posix_acl_default" => (3, b""),
            _ => PREFIXES
                .iter()
                .find_map(|(index, prefix)| Some((*index, full_name.strip_prefix(*prefix)?)))
                .filter(|(_, name)| (1..=255).contains(&name.len()) && !name.contains(&0))?,
        };
        Some(Self { index, name, value: value.into() })
    }
}

/// The stored form of attributes by their full names. Those of name spaces that Linux does not have (as
/// `com.apple.`) are left out, as every unpacker does.
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)], inline: &mut InlineXattrs) -> Result<Encoded, Ext4Error> {
    let mut attributes: Vec<Attribute<'_>> =
        xattrs.iter().filter_map(|(name, value)| Attribute::new(name, value)).collect();
    // A block is searched by this order. Of equal names the last one counts: reversed, it is the first to stay.
    attributes.reverse();
    attributes.sort_by_key(|a| (a.index, a.name.len(), a.name));
    attributes.dedup_by_key(|a| (a.index, a.name));
    for attribute in &mut attributes {
        let name = match attribute.index {
            2 => "system.posix_acl_access",
            3 => "system.posix_acl_default",
            _ => continue,
        };
        attribute.value = acl::to_disk(name, &attribute.value)?.unwrap_or_default().into();
    }
    attributes.retain(|a| !(matches!(a.index, 2 | 3) && a.value.is_empty()));
    if attributes.is_empty() {
        return Ok(Encoded::None);
    }
    // Entries, the zero word behind them, values.
    let entries: usize = attributes.iter().map(|a| (ENTRY_HEADER + a.name.len()).next_multiple_of(4)).sum();
    let values: usize = attributes.iter().map(|a| a.value.len().next_multiple_of(4)).sum();
    let size = entries + 4 + values;
    if size <= INODE_ROOM - 4
        && let Some(number) = inline.number(&attributes)
    {
        return Ok(Encoded::Inode(number));
    }
    if size > BLOCK - BLOCK_HEADER {
        return Err(Ext4Error::XattrsTooLarge(attributes.iter().map(|a| a.name.len() + a.value.len()).sum()));
    }
    let mut block = Box::new([0; BLOCK]);
    let hash = fill(&mut block[..], BLOCK_HEADER, 0, &attributes);
    put(&mut block[..], 0, MAGIC.to_le_bytes());
    put(&mut block[..], 4, 1_u32.to_le_bytes()); // h_refcount
    put(&mut block[..], 8, 1_u32.to_le_bytes()); // h_blocks
    put(&mut block[..], 12, hash.to_le_bytes());
    Ok(Encoded::Block(block))
}

/// Seals a block that will be at `number`.
pub(super) fn seal(block: &mut [u8; BLOCK], file_system_seed: u32, number: u32) {
    let checksum = crc(crc(file_system_seed, &u64::from(number).to_le_bytes()), block);
    put(block, 16, checksum.to_le_bytes());
}

/// Writes entries from `start` on and values from the end; value offsets count from `base`. Gives the hash of all.
fn fill(area: &mut [u8], start: usize, base: usize, attributes: &[Attribute<'_>]) -> u32 {
    let (mut at, mut end) = (start, area.len());
    let mut all = 0_u32;
    for Attribute { index, name, value } in attributes {
        end -= value.len().next_multiple_of(4);
        area[end..end + value.len()].copy_from_slice(value);
        let hash = hash(name, value);
        all = all.rotate_left(16) ^ hash;
        area[at] = name.len() as u8;
        area[at + 1] = *index;
        let offset = if value.is_empty() { 0 } else { end - base };
        put(area, at + 2, (offset as u16).to_le_bytes());
        put(area, at + 8, (value.len() as u32).to_le_bytes());
        put(area, at + 12, hash.to_le_bytes());
        area[at + ENTRY_HEADER..][..name.len()].copy_from_slice(name);
        at += (ENTRY_HEADER + name.len()).next_multiple_of(4);
    }
    all
}

/// e_hash: over the name's bytes, then the value's words.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let name = name.iter().fold(0_u32, |hash, &c| hash.rotate_left(5) ^ u32::from(c));
    value.chunks(4).fold(name, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}
