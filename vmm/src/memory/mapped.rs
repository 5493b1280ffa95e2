//! Which pages of guest RAM are those of files.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{HUGE, PAGE, Runs};

/// The pages of guest RAM that were those of files when it was mapped, and which of them are none since.
#[derive(Debug)]
pub struct Mapped {
    /// Of the first file.
    pub(crate) base: Runs,
    /// Of the one that is before it.
    pub(crate) over: Runs,
    /// For each huge page of the RAM, whether it is anonymous memory now: the guest has given it back.
    replaced: Box<[AtomicBool]>,
}

impl Mapped {
    /// Of a RAM of `bytes`.
    pub fn new(base: Runs, over: Runs, bytes: u64) -> Self {
        let huge = bytes.div_ceil(HUGE as u64);
        Self { base, over, replaced: (0..huge).map(|_| AtomicBool::new(false)).collect() }
    }

    /// Marks the pages of `bytes` that were a file's at first.
    pub(crate) fn mark(&self, bytes: &Range<u64>, marks: &mut [bool]) {
        self.base.mark(bytes.clone(), marks);
        self.over.mark(bytes.clone(), marks);
    }

    /// Marks those that were the first file's at first, and were given back.
    pub(crate) fn mark_replaced(&self, bytes: &Range<u64>, marks: &mut [bool]) {
        for part in self.base.within(bytes.clone()) {
            for at in part.step_by(PAGE as usize).filter(|at| self.is_replaced(*at)) {
                marks[((at - bytes.start) / PAGE) as usize] = true;
            }
        }
    }

    /// Whether there is a page of a file in the huge page at byte `at`.
    pub(super) fn has_file(&self, at: u64) -> bool {
        let huge = at..at + HUGE as u64;
        !self.is_replaced(at)
            && [&self.base, &self.over].iter().any(|runs| runs.within(huge.clone()).next().is_some())
    }

    /// The huge page at byte `at` is anonymous memory from now on.
    pub(super) fn replace(&self, at: u64) {
        self.replaced[at as usize / HUGE].store(true, Ordering::Relaxed);
    }

    fn is_replaced(&self, at: u64) -> bool {
        self.replaced[at as usize / HUGE].load(Ordering::Relaxed)
    }
}
