//! What the RAM of a machine was that has gone on from a snapshot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::header::{Header, PAGES_START};
use crate::memory::Mapped;

/// Which pages the machine has of files until it writes to them, and the file that stays.
#[derive(Debug)]
pub(crate) struct Origin {
    /// What snapshots of the machine are over: a complete snapshot in a file that stays.
    pub(super) base: Option<Base>,
    /// Those of the base, and those over it.
    pub(crate) mapped: Arc<Mapped>,
}

/// A snapshot that is complete in itself.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) file: File,
    pub(super) header: Header,
}

impl Origin {
    /// What the base has at byte `at` of the RAM and behind: zeros where there is none.
    pub(super) fn read_base(&self, at: u64, pages: &mut [u8]) -> io::Result<()> {
        pages.fill(0);
        let Some(base) = &self.base else { return Ok(()) };
        for (part, packed) in self.mapped.base.packed(at..at + pages.len() as u64) {
            let part = &mut pages[(part.start - at) as usize..(part.end - at) as usize];
            base.file.read_exact_at(part, PAGES_START + packed)?;
        }
        Ok(())
    }
}
