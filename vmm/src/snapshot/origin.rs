//! What the RAM of a machine was that has gone on from a snapshot.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::header::{Header, PAGES_START};
use crate::memory::{PAGE, Pages, Runs};

/// The pages that the machine has of files until it writes to them.
#[derive(Debug)]
pub(crate) struct Origin {
    /// A complete snapshot in a file that stays: snapshots of the machine leave out what is as it is there.
    pub(super) base: Option<Base>,
    /// Pages that are mapped over it.
    pub(super) over: Runs,
}

/// A snapshot that is complete in itself.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) file: File,
    pub(super) header: Header,
    pub(super) runs: Runs,
}

impl Origin {
    /// Marks the pages of `bytes` of the RAM that were mapped from a file.
    pub(super) fn mark(&self, bytes: &Range<u64>, marks: &mut [bool]) {
        for runs in self.base.iter().map(|base| &base.runs).chain([&self.over]) {
            runs.mark(bytes.clone(), marks);
        }
    }
}

impl Base {
    pub(super) fn pages(&self) -> Pages<'_> {
        Pages { file: &self.file, offset: PAGES_START, runs: &self.runs }
    }

    /// What it has at byte `at` of the RAM and behind.
    pub(super) fn read(&self, at: u64, pages: &mut [u8]) -> io::Result<()> {
        pages.fill(0);
        let end = at + pages.len() as u64;
        let mut offset = PAGES_START;
        for run in self.runs.iter() {
            let bytes = run.bytes();
            let (from, to) = (bytes.start.max(at), bytes.end.min(end));
            if from < to {
                let part = &mut pages[(from - at) as usize..(to - at) as usize];
                self.file.read_exact_at(part, offset + (from - bytes.start))?;
            }
            offset += u64::from(run.count) * PAGE;
        }
        Ok(())
    }
}
