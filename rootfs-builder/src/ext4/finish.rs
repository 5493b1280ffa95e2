//! The part that runs when the tree is whole: directories and metadata behind the data, descriptors and
//! superblock in front.

use std::collections::VecDeque;

use super::checksum::inode_seed;
use super::directory::{self, Identity, Name};
use super::extents::Extent;
use super::geometry::{Geometry, descriptor_blocks};
use super::groups::{Places, Usage};
use super::inode::{self, INLINE_TARGET, INODE, JOURNAL, LAST_RESERVED, MAX_LINKS, number};
use super::superblock::{Superblock, hash_seed};
use super::xattr::InlineXattrs;
use super::{BLOCK, Ext4Error, FileMap, Writer, Xattrs, journal};
use crate::layer::Timestamp;
use crate::tree::{Content, Inode, InodeId, Metadata, ROOT, Tree};

/// What has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the file system, holes included.
    pub size_bytes: u64,
    /// Objects in it, lost+found and the root among them.
    pub inodes: u32,
}

/// How often each object is named, and where directories and long symbolic links are.
struct Placed {
    /// By the inode's index; 0: not reachable.
    links: Vec<u32>,
    /// Ascending by inode.
    maps: Vec<(InodeId, FileMap)>,
}

impl Writer<'_> {
    /// Completes the file system: `size` bytes, or a default; see [`crate::convert::Options`].
    pub fn finish(mut self, tree: &Tree, size: Option<u64>, journal: bool) -> Result<Summary, Ext4Error> {
        let data_start = super::geometry::reserved_blocks(size);
        let mut placed = self.write_directories(tree)?;
        self.write_symlinks(tree, &mut placed)?;
        placed.maps.sort_unstable_by_key(|(id, _)| id.index());

        let metadata_start = self.next_block()?;
        let last_inode = LAST_RESERVED + tree.inode_count();
        let geometry = Geometry::choose(size, journal, metadata_start, last_inode)?;
        let at = Places {
            block_bitmaps: metadata_start,
            inode_bitmaps: metadata_start + geometry.groups,
            tables: metadata_start + 2 * geometry.groups,
        };
        let journal_start = at.tables + geometry.groups * geometry.table_blocks();
        let end = journal_start + geometry.journal_blocks;
        let mut usage = Usage::new(geometry, end);
        usage.use_blocks(0, 1 + descriptor_blocks(geometry.groups));
        usage.use_blocks(metadata_start, end - metadata_start);
        let inodes = use_reachable(tree, &placed, &mut usage);

        // Everything that is named has been written by now: the rest belonged to what layers replaced.
        self.flush()?;
        for (start, count) in usage.free_runs(data_start, metadata_start) {
            self.punch(start, count)?;
        }
        for group in 0..geometry.groups {
            self.append_or_skip(usage.block_bitmap(group).as_ref())?;
        }
        for group in 0..geometry.groups {
            self.append_or_skip(usage.inode_bitmap(group).as_ref())?;
        }
        let groups: Vec<_> = (0..geometry.groups).map(|group| usage.group(group, self.seed)).collect();
        let journal_map = FileMap {
            size: u64::from(geometry.journal_blocks) * BLOCK as u64,
            start: journal_start,
            count: geometry.journal_blocks,
            ..FileMap::default()
        };
        let xattrs = std::mem::take(&mut self.inline_xattrs);
        let journal_inode = journal.then_some(&journal_map);
        let mut table = InodeTable::new(self.seed, tree, &placed, &xattrs, journal_inode);
        for (group, i) in groups.iter().zip(0..) {
            for number in (i * geometry.inodes_per_group + 1..).take(group.table_inodes as usize) {
                self.append(&table.inode(number))?;
            }
            self.pad();
            let written = group.table_inodes.div_ceil((BLOCK / INODE) as u32);
            self.skip(u64::from(geometry.table_blocks() - written))?;
        }
        debug_assert_eq!(self.next_block().ok(), Some(journal_start));
        if journal {
            self.append(&journal::superblock(geometry.journal_blocks))?;
        }
        self.flush()?;

        let descriptors: Vec<u8> = groups
            .iter()
            .zip(0..)
            .flat_map(|(group, i)| group.descriptor(i, &geometry, at, self.seed))
            .collect();
        self.write_at(&descriptors, BLOCK as u64)?;
        let superblock = Superblock {
            geometry,
            uuid: self.uuid,
            free_blocks: groups.iter().map(|group| group.free_blocks).sum(),
            free_inodes: groups.iter().map(|group| group.free_inodes).sum(),
            journal: journal.then(|| (journal_map.root(), journal_map.size)),
        };
        self.write_at(&superblock.encode(), 1024)?;
        let size_bytes = size.unwrap_or(u64::from(geometry.blocks) * BLOCK as u64);
        self.set_length(size_bytes)?;
        Ok(Summary { size_bytes, inodes })
    }

    /// A bitmap, or a hole where the kernel makes it itself.
    fn append_or_skip(&mut self, bitmap: Option<&[u8; BLOCK]>) -> Result<(), Ext4Error> {
        match bitmap {
            Some(bitmap) => self.append(bitmap),
            None => self.skip(1),
        }
    }

    /// Breadth-first from the root, so that what lies near in the tree lies near on disk.
    fn write_directories(&mut self, tree: &Tree) -> Result<Placed, Ext4Error> {
        let hash_seed = hash_seed(&self.uuid);
        let mut links = vec![0_u32; tree.inode_count() as usize];
        let mut maps = Vec::new();
        let mut pending = VecDeque::from([(ROOT, ROOT)]);
        links[ROOT.index() as usize] = 2;
        while let Some((id, parent)) = pending.pop_front() {
            let (mut names, mut children) = (Vec::new(), Vec::new());
            for (name, child) in tree.children(id) {
                let content = &tree.inode(child).content;
                let count = &mut links[child.index() as usize];
                if matches!(content, Content::Directory(_)) {
                    *count = 2;
                    children.push(child);
                } else {
                    *count += 1;
                    if *count > MAX_LINKS {
                        return Err(Ext4Error::TooManyLinks(name.escape_ascii().to_string()));
                    }
                }
                names.push(Name::new(name, number(child), inode::file_type(content)));
            }
            let identity = Identity {
                inode: number(id),
                parent: number(parent),
                seed: inode_seed(self.seed, number(id)),
                hash_seed,
            };
            children.sort_unstable_by_key(|child| child.index());
            links[id.index() as usize] += children.len() as u32;
            pending.extend(children.into_iter().map(|child| (child, id)));

            let start = self.next_block()?;
            let is_indexed = directory::blocks(&identity, names, |block| self.append(block))?;
            let length = self.next_block()? - start;
            let run = Extent { logical: 0, physical: start, length };
            let map = self.map(id, u64::from(length) * BLOCK as u64, start, &[run])?;
            maps.push((id, FileMap { is_indexed, ..map }));
        }
        Ok(Placed { links, maps })
    }

    /// Targets that do not fit into their inodes.
    fn write_symlinks(&mut self, tree: &Tree, placed: &mut Placed) -> Result<(), Ext4Error> {
        for (id, inode) in tree.inodes() {
            let Content::Symlink(target) = &inode.content else { continue };
            if target.len() < INLINE_TARGET || placed.links[id.index() as usize] == 0 {
                continue;
            }
            let start = self.next_block()?;
            self.append(target)?;
            self.pad();
            placed.maps.push((id, self.map(id, target.len() as u64, start, &[])?));
        }
        Ok(())
    }
}

/// Marks the inodes that have a name and the blocks that are theirs; gives their number.
fn use_reachable(tree: &Tree, placed: &Placed, usage: &mut Usage) -> u32 {
    for number in 1..=LAST_RESERVED {
        usage.use_inode(number, false);
    }
    let mut count = 0;
    for (id, inode) in tree.inodes().filter(|(id, _)| placed.links[id.index() as usize] > 0) {
        count += 1;
        usage.use_inode(number(id), matches!(inode.content, Content::Directory(_)));
        if let Content::File(map) = &inode.content {
            usage.use_blocks(map.start, map.count);
        }
        if let Xattrs::Block(block) = inode.metadata.xattrs {
            usage.use_blocks(block, 1);
        }
    }
    for (_, map) in &placed.maps {
        usage.use_blocks(map.start, map.count);
    }
    count
}

/// Inodes as they are stored, asked for in ascending order.
struct InodeTable<'a> {
    seed: u32,
    tree: &'a Tree,
    links: &'a [u32],
    /// The root's directory is always there, and first.
    root_map: &'a FileMap,
    maps: std::iter::Peekable<std::slice::Iter<'a, (InodeId, FileMap)>>,
    xattrs: &'a InlineXattrs,
    journal: Option<&'a FileMap>,
}

impl<'a> InodeTable<'a> {
    fn new(
        seed: u32,
        tree: &'a Tree,
        placed: &'a Placed,
        xattrs: &'a InlineXattrs,
        journal: Option<&'a FileMap>,
    ) -> Self {
        let (root_map, maps) = (&placed.maps[0].1, placed.maps[1..].iter().peekable());
        Self { seed, tree, links: &placed.links, root_map, maps, xattrs, journal }
    }

    fn inode(&mut self, number: u32) -> [u8; INODE] {
        match number {
            2 => {
                let links = self.links_of(ROOT);
                inode::encode(
                    self.seed,
                    number,
                    self.tree.inode(ROOT),
                    links,
                    Some(self.root_map),
                    self.xattrs,
                )
            }
            JOURNAL => {
                let Some(map) = self.journal else { return [0; INODE] };
                let mtime = Timestamp::default();
                let metadata = Metadata { mode: 0o600, uid: 0, gid: 0, mtime, xattrs: Xattrs::None };
                let inode = Inode { metadata, content: Content::File(FileMap::default()) };
                inode::encode(self.seed, number, &inode, 1, Some(map), self.xattrs)
            }
            ..=LAST_RESERVED => [0; INODE],
            _ => {
                let id = self.tree.id(number - LAST_RESERVED);
                let own_map = self.maps.next_if(|(owner, _)| *owner == id).map(|(_, map)| map);
                let links = self.links_of(id);
                if links == 0 {
                    return [0; INODE];
                }
                let inode = self.tree.inode(id);
                let map = match &inode.content {
                    Content::File(map) => Some(map),
                    _ => own_map,
                };
                inode::encode(self.seed, number, inode, links, map, self.xattrs)
            }
        }
    }

    /// A directory with more links than can be counted has one (dir_nlink).
    fn links_of(&self, id: InodeId) -> u32 {
        let links = self.links[id.index() as usize];
        if links > MAX_LINKS { 1 } else { links }
    }
}
