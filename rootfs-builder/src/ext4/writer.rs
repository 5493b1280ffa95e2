//! The part that runs while layers stream by: file data and attribute blocks, one run behind the other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::checksum::{file_system_seed, inode_seed};
use super::extents::{self, Extent, ROOT_ENTRIES};
use super::inode::number;
use super::xattr::{self, Encoded, InlineXattrs};
use super::{BLOCK, Ext4Error, Xattrs};
use crate::tree::InodeId;

/// Bytes gathered before they are written.
const BUFFER: usize = 4 << 20;

/// The largest file: its blocks are numbered in 32 bits, and the last number is reserved.
const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK_BYTES;

const BLOCK_BYTES: u64 = BLOCK as u64;

/// Appends to a file system that is being made.
pub struct Writer<'a> {
    output: &'a File,
    pub(super) uuid: [u8; 16],
    pub(super) seed: u32,
    pub(super) inline_xattrs: InlineXattrs,
    /// Bytes from `buffer_block` on that have not been written.
    buffer: Vec<u8>,
    buffer_block: u64,
}

/// Where a file's content is. All its blocks, those of its extent tree too, are one run.
#[derive(Debug, Default)]
pub struct FileMap {
    /// Length in bytes.
    pub size: u64,
    pub(super) start: u32,
    pub(super) count: u32,
    /// Of a single run: its first block in the file.
    pub(super) logical: u32,
    /// The root of the extent tree, where that is not a single run.
    pub(super) root: Option<Box<[u8; 60]>>,
    /// Of a directory: its first block is an index.
    pub(super) is_indexed: bool,
}

impl<'a> Writer<'a> {
    /// Starts behind `reserved` blocks, which hold superblock and descriptors in the end. `output` is empty.
    pub fn new(output: &'a File, uuid: [u8; 16], reserved: u32) -> Self {
        Self {
            output,
            uuid,
            seed: file_system_seed(&uuid),
            inline_xattrs: InlineXattrs::default(),
            buffer: Vec::with_capacity(BUFFER),
            buffer_block: u64::from(reserved),
        }
    }

    /// Stores attributes: into a block now, or, where they are small, into the inode later.
    pub fn xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Xattrs, Ext4Error> {
        Ok(match xattr::encode(xattrs, &mut self.inline_xattrs)? {
            Encoded::None => Xattrs::None,
            Encoded::Inode(number) => Xattrs::Inode(number),
            Encoded::Block(mut block) => {
                let number = self.next_block()?;
                xattr::seal(&mut block, self.seed, number);
                self.append(&block[..])?;
                Xattrs::Block(number)
            }
        })
    }

    /// Begins the content of a file of `size` bytes. The inode's number is part of its checksums.
    pub fn file(&mut self, inode: InodeId, size: u64) -> Result<FileWriter<'_, 'a>, Ext4Error> {
        if size > MAX_FILE {
            return Err(Ext4Error::FileTooLarge(size));
        }
        let start = self.next_block()?;
        Ok(FileWriter { inode, size, start, extents: Vec::new(), at: 0, writer: self })
    }

    /// The number of the block that is appended next.
    pub(super) fn next_block(&self) -> Result<u32, Ext4Error> {
        debug_assert_eq!(self.buffer.len() % BLOCK, 0);
        // The largest number is left out: a count of all blocks has to fit as well.
        u32::try_from(self.buffer_block + (self.buffer.len() / BLOCK) as u64 + 1)
            .map(|next| next - 1)
            .map_err(|_| Ext4Error::TooLarge)
    }

    /// The map of what has just been appended from block `start` on. Where its root cannot hold all extents, the
    /// tree's blocks are appended too.
    pub(super) fn map(
        &mut self,
        inode: InodeId,
        size: u64,
        start: u32,
        extents: &[Extent],
    ) -> Result<FileMap, Ext4Error> {
        let end = self.next_block()?;
        let map = FileMap { size, start, count: end - start, ..FileMap::default() };
        match extents {
            [] => return Ok(map),
            [run] if run.length <= ROOT_ENTRIES as u32 * extents::MAX_LENGTH => {
                return Ok(FileMap { logical: run.logical, ..map });
            }
            _ => {}
        }
        let (root, blocks) = extents::tree(extents, inode_seed(self.seed, number(inode)), end);
        for block in blocks {
            self.append(&block)?;
        }
        let count = self.next_block()? - start;
        Ok(FileMap { count, root: Some(Box::new(root)), ..map })
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), Ext4Error> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Zeros up to the end of the block.
    pub(super) fn pad(&mut self) {
        // The capacity is whole blocks, so this never passes it; a full buffer has been flushed.
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
    }

    /// Leaves a hole of `blocks` blocks.
    pub(super) fn skip(&mut self, blocks: u64) -> Result<(), Ext4Error> {
        self.flush()?;
        self.buffer_block += blocks;
        Ok(())
    }

    /// Writes what has been gathered, but not the blocks that hold only zeros: a hole reads the same.
    pub(super) fn flush(&mut self) -> Result<(), Ext4Error> {
        self.pad();
        let mut start = 0;
        let is_zero = |block: &[u8]| block == [0; BLOCK];
        while start < self.buffer.len() {
            let run = self.buffer[start..].chunks(BLOCK);
            let count = run.take_while(|block| !is_zero(block)).count() * BLOCK;
            self.write_at(
                &self.buffer[start..start + count],
                self.buffer_block * BLOCK_BYTES + start as u64,
            )?;
            start += count;
            start += self.buffer[start..].chunks(BLOCK).take_while(|block| is_zero(block)).count() * BLOCK;
        }
        self.buffer_block += (self.buffer.len() / BLOCK) as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Ext4Error> {
        self.output.write_all_at(bytes, offset).map_err(Ext4Error::Write)
    }

    pub(super) fn set_length(&self, bytes: u64) -> Result<(), Ext4Error> {
        self.output.set_len(bytes).map_err(Ext4Error::Write)
    }

    /// Makes a run of blocks read as zeros and gives their space back.
    pub(super) fn punch(&self, start: u32, count: u32) -> Result<(), Ext4Error> {
        use rustix::fs::{FallocateFlags, fallocate};
        let (offset, length) = (u64::from(start) * BLOCK_BYTES, u64::from(count) * BLOCK_BYTES);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(self.output, flags, offset, length) {
            Ok(()) => Ok(()),
            // A file system without holes: at least nothing that was deleted is left to read.
            Err(rustix::io::Errno::OPNOTSUPP) => (0..u64::from(count))
                .try_for_each(|block| self.write_at(&[0; BLOCK], offset + block * BLOCK_BYTES)),
            Err(error) => Err(Ext4Error::Write(io::Error::from(error))),
        }
    }
}

/// Appends the content of one file, front to back.
pub struct FileWriter<'w, 'a> {
    writer: &'w mut Writer<'a>,
    inode: InodeId,
    size: u64,
    start: u32,
    extents: Vec<Extent>,
    /// Offset in the file.
    at: u64,
}

impl FileWriter<'_, '_> {
    /// Goes forward to `offset`. Whole blocks between here and there become a hole.
    pub fn seek(&mut self, offset: u64) -> Result<(), Ext4Error> {
        debug_assert!(offset >= self.at);
        let is_within_block =
            !self.at.is_multiple_of(BLOCK_BYTES) && self.at / BLOCK_BYTES == offset / BLOCK_BYTES;
        let zeros = if is_within_block {
            offset - self.at
        } else {
            self.writer.pad();
            offset % BLOCK_BYTES
        };
        if !is_within_block {
            self.extents.push(Extent {
                logical: (offset / BLOCK_BYTES) as u32,
                physical: self.writer.next_block()?,
                length: 0,
            });
        }
        self.at = offset;
        self.writer.append(&[0; BLOCK][..zeros as usize])
    }

    /// Appends data. The caller keeps within the size it has announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Ext4Error> {
        if self.extents.is_empty() {
            self.seek(0)?;
        }
        self.writer.append(bytes)?;
        self.at += bytes.len() as u64;
        debug_assert!(self.at <= self.size);
        Ok(())
    }

    /// Ends the file.
    pub fn finish(self) -> Result<FileMap, Ext4Error> {
        let Self { writer, inode, size, start, mut extents, .. } = self;
        writer.pad();
        let end = writer.next_block()?;
        // Each extent ends where the next begins.
        for i in 0..extents.len() {
            let next = extents.get(i + 1).map_or(end, |next| next.physical);
            extents[i].length = next - extents[i].physical;
        }
        extents.retain(|extent| extent.length > 0);
        extents.dedup_by(|next, before| {
            let joined = before.logical + before.length == next.logical;
            before.length += if joined { next.length } else { 0 };
            joined
        });
        writer.map(inode, size, start, &extents)
    }
}

impl FileMap {
    /// The root of the extent tree.
    pub(super) fn root(&self) -> [u8; 60] {
        let run = Extent { logical: self.logical, physical: self.start, length: self.count };
        // So few extents need no blocks of their own, and no seed for those.
        self.root.as_ref().map_or_else(|| extents::tree(&[run], 0, 0).0, |root| **root)
    }
}
