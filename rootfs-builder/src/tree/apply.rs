//! What entries and whiteouts of a layer do to the tree (OCI image specification, layer.md, "Applying Changesets").

use super::path::{MAX_NAME, join, quote, split};
use super::{
    Content, EntryId, Inode, InodeId, LOST_AND_FOUND, Metadata, NONE, REMOVED, RESERVED, ROOT, Tree,
    TreeError, components,
};

/// Symbolic links that one path may pass through: Linux's own limit.
const MAX_SYMLINKS: usize = 40;

/// Steps that all paths through symbolic links may take together, for each entry that an image may have.
const MAX_DETOURS: u64 = 16;

impl Tree {
    /// Makes the directory, or gives the one that is there this metadata.
    pub fn add_directory(&mut self, path: &[&[u8]], metadata: Metadata) -> Result<(), TreeError> {
        let Some((name, parents)) = path.split_last() else {
            self.inodes[ROOT.0 as usize].metadata = metadata;
            return Ok(());
        };
        let parent = self.make_parents(parents)?;
        if let Some(id) = self.find(parent, name) {
            let inode = self.entries[id.0 as usize].inode;
            if self.directory(inode).is_some() {
                self.inodes[inode.0 as usize].metadata = metadata;
                self.entries[id.0 as usize].layer = self.layer;
                return Ok(());
            }
        }
        let inode = self.push(self.new_directory(metadata));
        self.put(path, parent, name, inode)
    }

    /// An object that has no name yet: the number of a file is needed while its data are written.
    pub fn add_inode(&mut self, inode: Inode) -> InodeId {
        self.push(inode)
    }

    /// Gives a file its content.
    pub fn set_content(&mut self, id: InodeId, content: Content) {
        self.inodes[id.0 as usize].content = content;
    }

    /// Gives an object that is no directory a name; what had the name before loses it.
    pub fn link(&mut self, path: &[&[u8]], inode: InodeId) -> Result<(), TreeError> {
        let Some((name, parents)) = path.split_last() else { return Err(TreeError::RootNotDirectory) };
        if let Content::Symlink(target) = &self.inode(inode).content {
            self.count_names(path, target.len())?;
        }
        let parent = self.make_parents(parents)?;
        self.put(path, parent, name, inode)
    }

    /// Gives what `target` names, in this layer or a lower one, a second name.
    pub fn hard_link(&mut self, path: &[&[u8]], target: &[u8]) -> Result<(), TreeError> {
        // Archives write targets from the root, with or without the leading slash.
        let relative = &target[target.iter().take_while(|&&c| c == b'/').count()..];
        let names = components(relative)?;
        let missing = || TreeError::NoTarget { path: join(path), target: quote(target) };
        let Some((name, parents)) = names.split_last() else {
            return Err(TreeError::LinkToDirectory { path: join(path), target: quote(target) });
        };
        let parent = self.walk(parents, false)?.ok_or_else(missing)?;
        let entry = self.find(parent, name).ok_or_else(missing)?;
        let inode = self.entries[entry.0 as usize].inode;
        if self.directory(inode).is_some() {
            return Err(TreeError::LinkToDirectory { path: join(path), target: quote(target) });
        }
        let Some((name, parents)) = path.split_last() else { return Err(TreeError::RootNotDirectory) };
        let parent = self.make_parents(parents)?;
        self.put(path, parent, name, inode)
    }

    /// `.wh.NAME`: hides what lower layers have under `name` (layer.md, "Whiteouts"). What this layer has put
    /// there stays, whichever came first.
    pub fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), TreeError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(TreeError::EmptyWhiteout(join(&[parents, &[&[b".wh.", name].concat()]].concat())));
        }
        let Some(parent) = self.walk(parents, false)? else { return Ok(()) };
        let Some(id) = self.find(parent, name) else { return Ok(()) };
        if self.survives(id) {
            let inode = self.entries[id.0 as usize].inode;
            self.clear(inode);
            return Ok(());
        }
        self.remove(id);
        Ok(())
    }

    /// `.wh..wh..opq`: hides everything that lower layers have in the directory (layer.md, "Opaque Whiteout").
    pub fn opaque(&mut self, path: &[&[u8]]) -> Result<(), TreeError> {
        if let Some(directory) = self.walk(path, false)? {
            self.clear(directory);
        }
        Ok(())
    }

    /// Removes what lower layers have below `top`. Each directory is visited once a layer at most, however often
    /// a layer asks.
    fn clear(&mut self, top: InodeId) {
        let mut pending = vec![top];
        while let Some(id) = pending.pop() {
            let layer = self.layer;
            let Some(directory) = self.directory_mut(id) else { continue };
            if directory.cleared == layer {
                continue;
            }
            directory.cleared = layer;
            let mut at = std::mem::replace(&mut directory.first, NONE);
            let mut kept = NONE;
            while at != NONE {
                let next = self.entries[at.0 as usize].next;
                if self.entries[at.0 as usize].inode == REMOVED {
                    // A whiteout of its own has left it in the list.
                } else if self.survives(at) {
                    let entry = &mut self.entries[at.0 as usize];
                    entry.next = kept;
                    kept = at;
                    pending.push(entry.inode);
                } else {
                    self.remove(at);
                }
                at = next;
            }
            if let Some(directory) = self.directory_mut(id) {
                directory.first = kept;
            }
        }
    }

    /// Whether an entry outlives a whiteout in this layer: this layer has put it there, or something below it.
    /// In the second case it is from now on a directory of this layer, of which nothing has been said.
    fn survives(&mut self, id: EntryId) -> bool {
        let entry = &self.entries[id.0 as usize];
        let (inode, entry_layer) = (entry.inode, entry.layer);
        // lost+found belongs to the file system, not to a layer.
        if entry_layer == self.layer || inode == LOST_AND_FOUND {
            return true;
        }
        if self.directory(inode).is_none_or(|directory| directory.touched != self.layer) {
            return false;
        }
        self.entries[id.0 as usize].layer = self.layer;
        self.inodes[inode.0 as usize].metadata = Metadata::of_implied_directory();
        true
    }

    /// The name `name` in `parent` is from now on `inode`'s.
    fn put(&mut self, path: &[&[u8]], parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), TreeError> {
        if self.entry_count() > self.max_entries || self.inode_count() > self.max_entries + RESERVED {
            return Err(TreeError::TooManyEntries { path: join(path), limit: self.max_entries });
        }
        if let Some(id) = self.find(parent, name) {
            let entry = &mut self.entries[id.0 as usize];
            // e2fsck -p gives up on a file system where this is something else.
            if entry.inode == LOST_AND_FOUND {
                return Err(TreeError::LostAndFound);
            }
            (entry.inode, entry.layer) = (inode, self.layer);
            return Ok(());
        }
        self.count_names(path, name.len())?;
        self.insert(parent, name, inode);
        Ok(())
    }

    fn count_names(&mut self, path: &[&[u8]], bytes: usize) -> Result<(), TreeError> {
        self.name_bytes = self.name_bytes.saturating_add(bytes as u32);
        if self.name_bytes > self.max_name_bytes {
            return Err(TreeError::TooManyNames { path: join(path), limit: self.max_name_bytes });
        }
        Ok(())
    }

    /// The directory at `path`, made where it is missing.
    fn make_parents(&mut self, path: &[&[u8]]) -> Result<InodeId, TreeError> {
        let Some(found) = self.walk(path, true)? else { unreachable!("a walk that makes ends somewhere") };
        // So that a whiteout of any of them knows that there is something of this layer below.
        for id in std::mem::take(&mut self.trail) {
            let layer = self.layer;
            if let Some(directory) = self.directory_mut(id) {
                directory.touched = layer;
            }
        }
        Ok(found)
    }

    /// The directory at `path`, through symbolic links, which cannot lead out of the root. `None`: there is none, and
    /// it was not to be made.
    fn walk(&mut self, path: &[&[u8]], make: bool) -> Result<Option<InodeId>, TreeError> {
        self.trail.clear();
        self.trail.push(ROOT);
        let mut at = ROOT;
        for name in path {
            match self.step(at, name, path, make)? {
                Step::Directory(next) => at = next,
                Step::Missing => return Ok(None),
                Step::Symlink(_) => return self.walk_symlinks(path, make),
            }
            self.trail.push(at);
        }
        Ok(Some(at))
    }

    /// [`Self::walk`] where symbolic links are in the way, from the start, with names of its own.
    fn walk_symlinks(&mut self, path: &[&[u8]], make: bool) -> Result<Option<InodeId>, TreeError> {
        self.trail.clear();
        self.trail.push(ROOT);
        let mut symlinks = 0;
        // Names to go, the next one last.
        let mut pending: Vec<Box<[u8]>> = path.iter().rev().map(|&name| name.into()).collect();
        while let Some(name) = pending.pop() {
            // A link of a few bytes can ask for thousands of steps, and forty of them for each entry.
            self.detours += 1;
            if self.detours > MAX_DETOURS * u64::from(self.max_entries) {
                return Err(TreeError::TooManyDetours(join(path)));
            }
            if &*name == b".." {
                if self.trail.len() > 1 {
                    self.trail.pop();
                }
                continue;
            }
            let at = self.trail.last().copied().unwrap_or(ROOT);
            match self.step(at, &name, path, make)? {
                Step::Directory(next) => self.trail.push(next),
                Step::Missing => return Ok(None),
                Step::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(TreeError::SymlinkLoop(join(path)));
                    }
                    if target.starts_with(b"/") {
                        self.trail.truncate(1);
                    }
                    pending.extend(split(&target).rev().map(Box::from));
                }
            }
        }
        Ok(self.trail.last().copied())
    }

    fn step(&mut self, at: InodeId, name: &[u8], path: &[&[u8]], make: bool) -> Result<Step, TreeError> {
        let Some(id) = self.find(at, name) else {
            if !make {
                return Ok(Step::Missing);
            }
            if name.len() > MAX_NAME {
                return Err(TreeError::NameTooLong(join(path)));
            }
            let inode = self.push(self.new_directory(Metadata::of_implied_directory()));
            self.put(path, at, name, inode)?;
            return Ok(Step::Directory(inode));
        };
        let inode = self.entries[id.0 as usize].inode;
        match &self.inode(inode).content {
            Content::Directory(_) => Ok(Step::Directory(inode)),
            Content::Symlink(target) => Ok(Step::Symlink(target.clone())),
            _ if make => Err(TreeError::NotADirectory(join(path))),
            _ => Ok(Step::Missing),
        }
    }
}

enum Step {
    Directory(InodeId),
    Symlink(Box<[u8]>),
    Missing,
}
