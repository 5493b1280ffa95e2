//! Extended attributes: in the inode where they fit, else in one block (filesystems/ext4/attributes.rst).

use super::checksum::crc;
use super::{BLOCK, Ext4Error, acl, put};

const MAGIC: u32 = 0xea02_0000;

/// Room behind the fields of a 256-byte inode, the magic number included.
const INODE_ROOM: usize = 96;

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
    /// Behind the fields of its inode.
    Inode(Box<[u8]>),
    /// In this block.
    Block(u32),
}

/// What there is to store.
pub(super) enum Encoded {
    None,
    Inode(Box<[u8]>),
    Block(Box<[u8; BLOCK]>),
}

struct Attribute<'a> {
    index: u8,
    name: &'a [u8],
    value: std::borrow::Cow<'a, [u8]>,
}

/// The stored form of attributes by their full names. Those of name spaces that Linux does not have (as
/// `com.apple.`) are left out, as every unpacker does.
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Encoded, Ext4Error> {
    let mut attributes = Vec::new();
    for (full_name, value) in xattrs {
        let (index, name): (u8, &[u8]) = match full_name.as_slice() {
            b"system.posix_acl_access" => (2, b""),
            b"system.posix_acl_default" => (3, b""),
            full => match [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
                .iter()
                .find_map(|(index, prefix)| Some((*index, full.strip_prefix(*prefix)?)))
            {
                Some((index, name)) if (1..=255).contains(&name.len()) && !name.contains(&0) => (index, name),
                _ => {
                    tracing::debug!(name = %full.escape_ascii(), "attribute of an unknown name space left out");
                    continue;
                }
            },
        };
        let value = if matches!(index, 2 | 3) {
            match acl::to_disk(&full_name.escape_ascii().to_string(), value)? {
                Some(value) => value.into(),
                None => continue,
            }
        } else {
            value.into()
        };
        attributes.push(Attribute { index, name, value });
    }
    if attributes.is_empty() {
        return Ok(Encoded::None);
    }
    // A block is searched by this order.
    attributes.sort_by(|a, b| (a.index, a.name.len(), a.name).cmp(&(b.index, b.name.len(), b.name)));
    // Entries, the zero word behind them, values.
    let entries: usize = attributes.iter().map(|a| (ENTRY_HEADER + a.name.len()).next_multiple_of(4)).sum();
    let values: usize = attributes.iter().map(|a| a.value.len().next_multiple_of(4)).sum();
    let size = entries + 4 + values;
    if size <= INODE_ROOM - 4 {
        let mut room = vec![0; INODE_ROOM];
        put(&mut room, 0, MAGIC.to_le_bytes());
        fill(&mut room, 4, 4, &attributes);
        return Ok(Encoded::Inode(room.into()));
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
