//! The file tree that layers build up, in memory: names and metadata, no file content.
//!
//! An *inode* is an object, an *entry* a name for it in a directory; a hard link is a second entry of the same
//! inode. Entries carry the layer that put them there, because a whiteout removes only what lower layers put.
//! Nothing is ever counted down: at the end, what can be reached from the root exists.
//!
//! A million entries have to fit (about 150 bytes each), so both live in arenas and names in one buffer; a hash
//! table over the entries finds a name in a directory.

mod apply;
mod error;
mod path;

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

pub use error::TreeError;
pub use path::components;

use crate::ext4::{FileMap, Xattrs};
use crate::layer::Timestamp;

/// Index of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeId(u32);

/// Index of an entry; `NONE` ends a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EntryId(u32);

const NONE: EntryId = EntryId(u32::MAX);

/// The inode of an entry that is no more: it stays in its directory's list until that is next walked.
const REMOVED: InodeId = InodeId(u32::MAX);

/// Inodes that no layer made: the root, lost+found.
const RESERVED: u32 = 2;

/// Number of a layer, from 1; 0 is what was there before the first.
pub type LayerNumber = u16;

/// The root directory.
pub const ROOT: InodeId = InodeId(0);

/// The directory that e2fsck moves strays to.
pub const LOST_AND_FOUND: InodeId = InodeId(1);

/// Who may do what with an object, and when it was changed.
#[derive(Debug)]
pub struct Metadata {
    /// Permission bits, 0 to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time; the file system has it as all four times.
    pub mtime: Timestamp,
    /// Extended attributes, in the form the file system stores.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// Of a directory that no layer describes: what the unpackers make, at the epoch, since nobody said when.
    fn of_implied_directory() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Xattrs::None }
    }
}

/// What an object is.
#[derive(Debug)]
pub enum Content {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(FileMap),
    /// A symbolic link and its target, 1 to 4095 bytes.
    Symlink(Box<[u8]>),
    /// A character device, major and minor number.
    CharDevice(u32, u32),
    /// A block device, major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A directory's list of entries, and what is known of it in the current layer.
#[derive(Debug)]
pub struct Directory {
    first: EntryId,
    /// The last layer that put something into it, or below.
    touched: LayerNumber,
    /// The last layer in which no entry of a lower layer is left in it.
    cleared: LayerNumber,
}

/// An object.
#[derive(Debug)]
pub struct Inode {
    /// Who, what, when.
    pub metadata: Metadata,
    /// What it is.
    pub content: Content,
}

struct Entry {
    parent: InodeId,
    inode: InodeId,
    next: EntryId,
    name_offset: u32,
    name_length: u8,
    layer: LayerNumber,
}

/// The tree.
pub struct Tree {
    inodes: Vec<Inode>,
    entries: Vec<Entry>,
    names: Vec<u8>,
    index: HashTable<EntryId>,
    hasher: RandomState,
    layer: LayerNumber,
    max_entries: u32,
    max_name_bytes: u32,
    name_bytes: u32,
    /// Names walked so far by paths through symbolic links.
    detours: u64,
    /// Directories from the root to where the last walk ended.
    trail: Vec<InodeId>,
}

impl InodeId {
    /// The number in the arena, from 0.
    pub fn index(self) -> u32 {
        self.0
    }
}

impl Tree {
    /// An empty root, and lost+found. At most `max_entries` entries and `max_name_bytes` bytes of names and link targets may follow.
    pub fn new(max_entries: u32, max_name_bytes: u32) -> Self {
        let mut tree = Self {
            inodes: Vec::new(),
            entries: Vec::new(),
            names: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            layer: 0,
            // Both count from 0 in 32 bits, with the last number reserved.
            max_entries: max_entries.min(u32::MAX - 2),
            max_name_bytes: max_name_bytes.min(u32::MAX - 256),
            name_bytes: 0,
            detours: 0,
            trail: Vec::new(),
        };
        let root = tree.push(tree.new_directory(Metadata::of_implied_directory()));
        let metadata = Metadata { mode: 0o700, ..Metadata::of_implied_directory() };
        let lost_and_found = tree.push(tree.new_directory(metadata));
        debug_assert_eq!((root, lost_and_found), (ROOT, LOST_AND_FOUND));
        tree.insert(ROOT, b"lost+found", LOST_AND_FOUND);
        tree
    }

    /// What follows is of the next layer.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// The object with this number, which is less than [`Self::inode_count`].
    pub fn id(&self, index: u32) -> InodeId {
        debug_assert!(index < self.inode_count());
        InodeId(index)
    }

    /// The object.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// Every object there has been, reachable or not, in the order of their numbers.
    pub fn inodes(&self) -> impl Iterator<Item = (InodeId, &Inode)> {
        self.inodes.iter().enumerate().map(|(index, inode)| (InodeId(index as u32), inode))
    }

    /// How many objects there have been; their numbers count from 0.
    pub fn inode_count(&self) -> u32 {
        self.inodes.len() as u32
    }

    /// How many entries there have been.
    pub fn entry_count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The names in a directory, in no order.
    pub fn children(&self, directory: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        let mut next = match &self.inode(directory).content {
            Content::Directory(directory) => directory.first,
            _ => NONE,
        };
        std::iter::from_fn(move || {
            let entry = self.entries.get(next.0 as usize)?;
            next = entry.next;
            Some(entry)
        })
        .filter(|entry| entry.inode != REMOVED)
        .map(|entry| (self.name(entry), entry.inode))
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        &self.names[entry.name_offset as usize..][..usize::from(entry.name_length)]
    }

    fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inodes[id.0 as usize].content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn new_directory(&self, metadata: Metadata) -> Inode {
        // New in this layer: nothing of a lower one can be in it.
        let directory = Directory { first: NONE, touched: self.layer, cleared: self.layer };
        Inode { metadata, content: Content::Directory(directory) }
    }

    fn push(&mut self, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        InodeId(self.inodes.len() as u32 - 1)
    }

    fn hash(&self, parent: InodeId, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent.0, name))
    }

    fn find(&self, parent: InodeId, name: &[u8]) -> Option<EntryId> {
        let is_it = |id: &EntryId| {
            let entry = &self.entries[id.0 as usize];
            entry.parent == parent && self.name(entry) == name
        };
        self.index.find(self.hash(parent, name), is_it).copied()
    }

    /// Adds an entry for a name that is not there. The caller has checked the limits.
    fn insert(&mut self, parent: InodeId, name: &[u8], inode: InodeId) {
        let id = EntryId(self.entries.len() as u32);
        let name_offset = self.names.len() as u32;
        self.names.extend_from_slice(name);
        let layer = self.layer;
        let next = match self.directory_mut(parent) {
            Some(directory) => std::mem::replace(&mut directory.first, id),
            None => unreachable!("entries are added to directories"),
        };
        self.entries.push(Entry { parent, inode, next, name_offset, name_length: name.len() as u8, layer });
        let hash = self.hash(parent, name);
        let (entries, names, hasher) = (&self.entries, &self.names, &self.hasher);
        self.index.insert_unique(hash, id, |id| {
            let entry = &entries[id.0 as usize];
            let name = &names[entry.name_offset as usize..][..usize::from(entry.name_length)];
            hasher.hash_one((entry.parent.0, name))
        });
    }

    /// Removes an entry, but for its place in the directory's list, which has no way back to what is before it.
    fn remove(&mut self, id: EntryId) {
        let entry = &self.entries[id.0 as usize];
        let hash = self.hash(entry.parent, self.name(entry));
        if let Ok(found) = self.index.find_entry(hash, |&other| other == id) {
            found.remove();
        }
        self.entries[id.0 as usize].inode = REMOVED;
    }
}

#[cfg(test)]
mod tests;
