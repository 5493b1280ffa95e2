//! Directories (filesystems/ext4/directory.rst): one block searched from front to back, or, beyond that, blocks
//! ordered by the names' hashes below an index.

use super::checksum::crc;
use super::hash::half_md4;
use super::{BLOCK, put};

/// Room for entries in a block: the checksum has the last 12 bytes.
const ROOM: usize = BLOCK - 12;

/// How far the blocks below an index are filled, so that the first new names do not split them all.
const FILL: usize = ROOM * 7 / 8;

/// Blocks that the index's root can name, and an inner block.
const ROOT_LIMIT: usize = (BLOCK - 32 - 8) / 8;
const NODE_LIMIT: usize = (BLOCK - 8 - 8) / 8;

/// One name.
pub(super) struct Name<'a> {
    pub(super) text: &'a [u8],
    pub(super) inode: u32,
    pub(super) file_type: u8,
    /// Set by [`blocks`].
    hash: u32,
}

impl<'a> Name<'a> {
    pub(super) fn new(text: &'a [u8], inode: u32, file_type: u8) -> Self {
        Self { text, inode, file_type, hash: 0 }
    }
}

/// Which directory, and what its checksums and hashes start from.
pub(super) struct Identity {
    pub(super) inode: u32,
    pub(super) parent: u32,
    pub(super) seed: u32,
    pub(super) hash_seed: [u32; 4],
}

/// Gives each block of the directory to `write`, in order. True when they have an index.
pub(super) fn blocks<E>(
    identity: &Identity,
    mut names: Vec<Name<'_>>,
    mut write: impl FnMut(&[u8; BLOCK]) -> Result<(), E>,
) -> Result<bool, E> {
    let is_small = names.iter().map(|name| entry_size(name.text)).sum::<usize>() <= ROOM - 24;
    if !is_small {
        for name in &mut names {
            name.hash = half_md4(name.text, identity.hash_seed);
        }
        // Of equal hashes the names decide: the output may depend on nothing else.
        names.sort_unstable_by(|a, b| (a.hash, a.text).cmp(&(b.hash, b.text)));
        let starts = pack(&names, FILL, FILL);
        if starts.len() <= ROOT_LIMIT * NODE_LIMIT {
            indexed(identity, &names, &starts, &mut write)?;
            return Ok(true);
        }
    }
    // Small, or larger than an index of two levels can hold.
    names.sort_unstable_by(|a, b| a.text.cmp(b.text));
    let starts = pack(&names, ROOM - 24, ROOM);
    for (i, chunk) in chunks(&names, &starts).enumerate() {
        let mut block = [0; BLOCK];
        let at = if i == 0 { dots(&mut block, identity, 12) } else { 0 };
        leaf(&mut block, at, chunk, identity.seed);
        write(&block)?;
    }
    Ok(false)
}

fn indexed<E>(
    identity: &Identity,
    names: &[Name<'_>],
    starts: &[usize],
    write: &mut impl FnMut(&[u8; BLOCK]) -> Result<(), E>,
) -> Result<(), E> {
    // The lowest bit says that names of this hash begin in the block before.
    let hashes: Vec<u32> = starts
        .iter()
        .map(|&start| names[start].hash | u32::from(start > 0 && names[start - 1].hash == names[start].hash))
        .collect();
    let nodes = if hashes.len() <= ROOT_LIMIT { 0 } else { hashes.len().div_ceil(NODE_LIMIT) };
    let leaves = 1 + nodes as u32..;
    let entries: Vec<(u32, u32)> = hashes.into_iter().zip(leaves).collect();

    let mut root = [0; BLOCK];
    dots(&mut root, identity, BLOCK - 12);
    root[0x1c] = 1; // half MD4
    root[0x1d] = 8; // info_length
    root[0x1e] = u8::from(nodes > 0); // indirect_levels
    if nodes == 0 {
        index(&mut root, 0x20, ROOT_LIMIT, &entries, identity.seed);
        write(&root)?;
    } else {
        let first: Vec<(u32, u32)> =
            entries.chunks(NODE_LIMIT).zip(1..).map(|(chunk, number)| (chunk[0].0, number)).collect();
        index(&mut root, 0x20, ROOT_LIMIT, &first, identity.seed);
        write(&root)?;
        for chunk in entries.chunks(NODE_LIMIT) {
            let mut node = [0; BLOCK];
            // To a kernel that knows no index this is an empty block.
            put(&mut node, 4, (BLOCK as u16).to_le_bytes());
            index(&mut node, 8, NODE_LIMIT, chunk, identity.seed);
            write(&node)?;
        }
    }
    for chunk in chunks(names, starts) {
        let mut block = [0; BLOCK];
        leaf(&mut block, 0, chunk, identity.seed);
        write(&block)?;
    }
    Ok(())
}

/// The list of (hash, block) at `at`: the first hash is implied, limit and count have its place.
fn index(block: &mut [u8; BLOCK], at: usize, limit: usize, entries: &[(u32, u32)], seed: u32) {
    for (i, (hash, number)) in entries.iter().enumerate() {
        put(block, at + 8 * i, hash.to_le_bytes());
        put(block, at + 8 * i + 4, number.to_le_bytes());
    }
    put(block, at, (limit as u16).to_le_bytes());
    put(block, at + 2, (entries.len() as u16).to_le_bytes());
    // Over the entries in use, then over the tail with its checksum as zero (linux fs/ext4/namei.c, ext4_dx_csum).
    let checksum = crc(crc(seed, &block[..at + 8 * entries.len()]), &[0; 8]);
    put(block, at + 8 * limit + 4, checksum.to_le_bytes());
}

/// `.` and `..`; gives where the next entry goes.
fn dots(block: &mut [u8; BLOCK], identity: &Identity, size_of_second: usize) -> usize {
    entry(block, 0, &Name::new(b".", identity.inode, 2), 12);
    entry(block, 12, &Name::new(b"..", identity.parent, 2), size_of_second);
    24
}

fn leaf(block: &mut [u8; BLOCK], start: usize, names: &[Name<'_>], seed: u32) {
    let mut at = start;
    for (i, name) in names.iter().enumerate() {
        // The last entry has all that is left.
        let size = if i + 1 == names.len() { ROOM - at } else { entry_size(name.text) };
        entry(block, at, name, size);
        at += size;
    }
    if names.is_empty() && start > 0 {
        put(block, start - 12 + 4, ((ROOM - start + 12) as u16).to_le_bytes());
    }
    put(block, ROOM + 4, 12_u16.to_le_bytes());
    block[ROOM + 7] = 0xde;
    let checksum = crc(seed, &block[..ROOM]);
    put(block, ROOM + 8, checksum.to_le_bytes());
}

fn entry(block: &mut [u8; BLOCK], at: usize, name: &Name<'_>, size: usize) {
    put(block, at, name.inode.to_le_bytes());
    put(block, at + 4, (size as u16).to_le_bytes());
    block[at + 6] = name.text.len() as u8;
    block[at + 7] = name.file_type;
    block[at + 8..][..name.text.len()].copy_from_slice(name.text);
}

fn entry_size(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

/// Where each block's names start, when the first holds `first` bytes of entries and the others `other`.
fn pack(names: &[Name<'_>], first: usize, other: usize) -> Vec<usize> {
    let mut starts = vec![0];
    let mut left = first;
    for (i, name) in names.iter().enumerate() {
        let size = entry_size(name.text);
        if size > left {
            starts.push(i);
            left = other;
        }
        left -= size;
    }
    starts
}

fn chunks<'a, 'b>(names: &'a [Name<'b>], starts: &'a [usize]) -> impl Iterator<Item = &'a [Name<'b>]> {
    let ends = starts[1..].iter().copied().chain([names.len()]);
    starts.iter().zip(ends).map(|(&start, end)| &names[start..end])
}
