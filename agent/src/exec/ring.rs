//! The latest output of a detached command.

use protocol::FrameType;
use std::collections::VecDeque;
use std::sync::Arc;

/// How much is kept, in bytes.
const CAPACITY: usize = 1 << 20;

/// What a piece takes beside its bytes, so that a command that writes single bytes cannot fill the memory with them.
const OVERHEAD: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Ring {
    pieces: VecDeque<(FrameType, Arc<[u8]>)>,
    size: usize,
    /// How many pieces were dropped before the first.
    dropped: u64,
}

impl Ring {
    /// Adds a piece; the oldest go.
    pub(crate) fn push(&mut self, kind: FrameType, bytes: &[u8]) {
        self.pieces.push_back((kind, bytes.into()));
        self.size += bytes.len() + OVERHEAD;
        while self.size > CAPACITY {
            let Some((_, oldest)) = self.pieces.pop_front() else { return };
            self.size -= oldest.len() + OVERHEAD;
            self.dropped += 1;
        }
    }

    /// The position behind the last piece.
    pub(crate) fn end(&self) -> u64 {
        self.dropped + self.pieces.len() as u64
    }

    /// The piece at `position`, or the first one there is; moves `position` behind it.
    pub(crate) fn next(&self, position: &mut u64) -> Option<(FrameType, Arc<[u8]>)> {
        let at = (*position).max(self.dropped);
        let (kind, bytes) = self.pieces.get((at - self.dropped) as usize)?;
        *position = at + 1;
        Some((*kind, Arc::clone(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_latest_in_order() {
        let mut ring = Ring::default();
        let (mut early, mut late) = (0, 0);
        ring.push(FrameType::Stdout, b"first");
        assert_eq!(ring.next(&mut early).unwrap().1[..], *b"first");
        assert!(ring.next(&mut early).is_none());
        for number in 0..100u8 {
            ring.push(FrameType::Stderr, &vec![number; 60_000]);
        }
        let kept: Vec<u8> = std::iter::from_fn(|| ring.next(&mut late)).map(|(_, bytes)| bytes[0]).collect();
        let behind: Vec<u8> =
            std::iter::from_fn(|| ring.next(&mut early)).map(|(_, bytes)| bytes[0]).collect();
        assert_eq!(kept, (83..100).collect::<Vec<_>>());
        assert_eq!(kept, behind);
    }

    #[test]
    fn single_bytes_are_bounded() {
        let mut ring = Ring::default();
        for _ in 0..100_000 {
            ring.push(FrameType::Stdout, b"x");
        }
        assert!(ring.pieces.len() <= CAPACITY / OVERHEAD);
    }
}
