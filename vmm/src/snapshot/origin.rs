//! What the RAM of a machine was that has gone on from a snapshot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::header::{Header, PAGES_START};
use crate::memory::{Mapped, PAGE};

/// The snapshot's files, and which pages the machine has of them until it writes to them.
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
        let end = at + pages.len() as u64;
        let mut offset = PAGES_START;
        for run in self.mapped.base.iter() {
            let bytes = run.bytes();
            let (from, to) = (bytes.start.max(at), bytes.end.min(end));
            if from < to {
                let part = &mut pages[(from - at) as usize..(to - at) as usize];
                base.file.read_exact_at(part, offset + (from - bytes.start))?;
            }
            offset += u64::from(run.count) * PAGE;
        }
        Ok(())
    }
}
