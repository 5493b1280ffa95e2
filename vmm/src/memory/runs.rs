//! Pages of a machine's RAM, by their numbers: those of its parts one behind the other, without the gap between them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::PAGE;

/// Neighbouring pages, one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Run {
    /// The number of the page behind them.
    pub(crate) fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    /// Where they are in the RAM, in bytes.
    pub(crate) fn bytes(self) -> Range<u64> {
        u64::from(self.first) * PAGE..self.end() * PAGE
    }
}

/// Runs in ascending order, between which there are other pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u32, u32)>", into = "Vec<(u32, u32)>")]
pub struct Runs {
    list: Vec<Run>,
    /// For each run, how many pages are in those before.
    before: Vec<u64>,
    /// In all of them.
    pages: u64,
}

/// Runs that are none.
#[derive(Debug, thiserror::Error)]
#[error("its runs of pages are empty or out of order")]
pub struct Disorder;

impl Runs {
    /// Adds pages behind those that there are.
    ///
    /// # Errors
    /// They are not behind them, or there are none.
    pub(crate) fn add(&mut self, run: Run) -> Result<(), Disorder> {
        let end = self.end();
        if run.count == 0 || u64::from(run.first) < end {
            return Err(Disorder);
        }
        let neighbour = self.list.last_mut().filter(|last| last.end() == u64::from(run.first));
        // Together they may be too many for one.
        if let Some((count, last)) =
            neighbour.and_then(|last| Some((last.count.checked_add(run.count)?, last)))
        {
            last.count = count;
        } else {
            self.before.push(self.pages);
            self.list.push(run);
        }
        self.pages += u64::from(run.count);
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Run> + '_ {
        self.list.iter().copied()
    }

    /// The parts of the runs that are in `bytes` of the RAM, in bytes.
    pub(crate) fn within(&self, bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.packed(bytes).map(|(part, _)| part)
    }

    /// The same, each with the byte at which it is where the runs are one behind the other.
    pub(crate) fn packed(&self, bytes: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        let first = self.list.partition_point(|run| run.bytes().end <= bytes.start);
        let behind = self.list[first..].iter().zip(&self.before[first..]);
        behind
            .map(move |(run, before)| {
                let run = run.bytes();
                let part = run.start.max(bytes.start)..run.end.min(bytes.end);
                let at = before * PAGE + (part.start - run.start);
                (part, at)
            })
            .take_while(|(part, _)| !part.is_empty())
    }

    /// Marks those of its pages that are among those of `bytes` of the RAM, of which `marks` has one each.
    pub(crate) fn mark(&self, bytes: Range<u64>, marks: &mut [bool]) {
        for part in self.within(bytes.clone()) {
            let [from, to] = [part.start, part.end].map(|at| ((at - bytes.start) / PAGE) as usize);
            marks[from..to].fill(true);
        }
    }

    /// How many pages are in the runs.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// The number of the page behind the last of them.
    pub(crate) fn end(&self) -> u64 {
        self.list.last().map_or(0, |run| run.end())
    }
}

impl TryFrom<Vec<(u32, u32)>> for Runs {
    type Error = Disorder;

    fn try_from(pairs: Vec<(u32, u32)>) -> Result<Self, Disorder> {
        let mut runs = Self::default();
        pairs.into_iter().try_for_each(|(first, count)| runs.add(Run { first, count }))?;
        Ok(runs)
    }
}

impl From<Runs> for Vec<(u32, u32)> {
    fn from(runs: Runs) -> Self {
        runs.iter().map(|run| (run.first, run.count)).collect()
    }
}

/// Where `marks` are true, neighbours together.
pub(crate) fn marked(marks: &[bool]) -> impl Iterator<Item = Range<usize>> + '_ {
    marks
        .chunk_by(PartialEq::eq)
        .scan(0, |start, same| {
            let range = *start..*start + same.len();
            *start = range.end;
            Some((same[0], range))
        })
        .filter_map(|(is, range)| is.then_some(range))
}
