//! The disk against a vector of bytes, and diffs that are not what they should be.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::VolatileSlice;

use super::{Disk, DiskError, GRANULE};

pub(super) const G: usize = GRANULE as usize;
const GRANULES: usize = 37;
pub(super) const SIZE: usize = GRANULES * G;

/// What is done to a disk and, as [`apply_to`](Self::apply_to) says, to a vector of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Write { offset: usize, len: usize, seed: u8 },
    Zero { offset: usize, len: usize },
    Flush,
    Reopen,
}

impl Op {
    /// Where it changes bytes.
    pub(super) fn range(self) -> std::ops::Range<usize> {
        match self {
            Self::Write { offset, len, .. } | Self::Zero { offset, len } => offset..offset + len,
            Self::Flush | Self::Reopen => 0..0,
        }
    }

    pub(super) fn apply_to(self, model: &mut [u8]) {
        match self {
            Self::Write { seed, .. } => {
                model[self.range()].copy_from_slice(&pattern(seed, self.range().len()));
            }
            Self::Zero { .. } => model[self.range()].fill(0),
            Self::Flush | Self::Reopen => {}
        }
    }

    pub(super) fn apply(self, disk: &mut Disk) -> std::io::Result<()> {
        match self {
            Self::Write { offset, len, seed } => {
                let mut bytes = pattern(seed, len);
                // In three pieces, one of them empty.
                let (first, second) = bytes.split_at_mut(len / 3);
                let slices = [first, &mut [], second].map(VolatileSlice::from);
                disk.write(offset as u64, &slices)
            }
            Self::Zero { offset, len } => disk.zero(offset as u64, len as u64),
            Self::Flush => disk.flush(),
            Self::Reopen => Ok(()),
        }
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 % 251) as u8 ^ seed).collect()
}

/// Bytes of a base of `size` bytes, none of them zero.
pub(super) fn base_bytes(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index / 512 % 255) as u8 + 1).collect()
}

pub(super) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub(super) fn read(disk: &Disk, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x5a; len];
    let (first, second) = bytes.split_at_mut(len / 5 * 2);
    disk.read(offset as u64, &[first, second].map(VolatileSlice::from)).unwrap();
    bytes
}

/// A base, its diff, and the disk of both.
fn disk() -> (File, File, Disk) {
    let (base, diff) = (file(&base_bytes(SIZE)), file(&[]));
    let disk = open(&base, &diff).unwrap();
    (base, diff, disk)
}

pub(super) fn open(base: &File, diff: &File) -> Result<Disk, DiskError> {
    open_over(base, None, diff)
}

pub(super) fn open_over(base: &File, lower: Option<&File>, diff: &File) -> Result<Disk, DiskError> {
    let [base, diff] = [base, diff].map(|file| file.try_clone().unwrap());
    Disk::open(base, lower.map(|lower| lower.try_clone().unwrap()), diff)
}

/// A diff of `base` to which `ops` were done, and what its disk reads as.
pub(super) fn lower(base: &File, ops: &[Op]) -> (File, Vec<u8>) {
    let (diff, mut model) = (in_memory(&[]), base_bytes(SIZE));
    let mut disk = open(base, &diff).unwrap();
    for op in ops {
        op.apply(&mut disk).unwrap();
        op.apply_to(&mut model);
    }
    (diff, model)
}

/// Offsets and lengths at which granules, sectors and single bytes begin and end.
fn place() -> impl Strategy<Value = (usize, usize)> {
    let unit = prop_oneof![3 => Just(G), 3 => Just(512), 1 => Just(1_usize)];
    (unit, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..6 * G).prop_map(
        |(unit, offset, granules, len)| {
            let offset = offset.index(SIZE / unit) * unit;
            // Now and then all that there is.
            let len = if granules.index(20) == 0 { SIZE } else { len.next_multiple_of(unit) };
            (offset, len.min(SIZE - offset))
        },
    )
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (place(), any::<u8>()).prop_map(|((offset, len), seed)| Op::Write { offset, len, seed }),
        3 => place().prop_map(|(offset, len)| Op::Zero { offset, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_a_vector_of_bytes(
        before in prop::option::of(prop::collection::vec(op(), 0..20)),
        ops in prop::collection::vec((op(), place()), 1..40),
    ) {
        let (base, diff) = (in_memory(&base_bytes(SIZE)), in_memory(&[]));
        let (lower, mut model) = match before.map(|ops| lower(&base, &ops)) {
            Some((lower, model)) => (Some(sealed_copy(&lower)), model),
            None => (None, base_bytes(SIZE)),
        };
        let open = || open_over(&base, lower.as_ref(), &diff).unwrap();
        let mut disk = open();
        for (op, (offset, len)) in ops {
            if matches!(op, Op::Reopen) {
                drop(disk);
                disk = open();
            }
            op.apply(&mut disk).unwrap();
            op.apply_to(&mut model);
            prop_assert!(read(&disk, offset, len) == model[offset..offset + len], "after {op:?}: {offset}, {len}");
        }
        prop_assert!(read(&disk, 0, SIZE) == model);
        prop_assert!(read(&open(), 0, SIZE) == model, "opened again");
        let mut bytes = vec![0; SIZE];
        base.read_exact_at(&mut bytes, 0).unwrap();
        prop_assert!(bytes == base_bytes(SIZE), "the base has changed");
    }

    /// Damage of the header or of its length is noticed, and the file left alone; damage of the rest is what a disk reads.
    #[test]
    fn a_damaged_diff_is_refused(at in 0..32_u64, bit in 0..8_u8) {
        let (base, diff, mut disk) = disk();
        Op::Write { offset: 0, len: G, seed: 1 }.apply(&mut disk).unwrap();
        let mut byte = [0];
        diff.read_exact_at(&mut byte, at).unwrap();
        diff.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
        let refused = matches!(open(&base, &diff), Err(DiskError::Header { .. }));
        prop_assert!(refused);
        diff.write_all_at(&byte, at).unwrap();
        prop_assert!(read(&open(&base, &diff).unwrap(), 0, G) == pattern(1, G));
    }
}

#[test]
fn a_diff_of_another_base_is_refused_by_field() {
    let (_, diff, _) = disk();
    let field = |base: &[u8]| match open(&file(base), &diff) {
        Err(DiskError::Header { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&base_bytes(SIZE + G)), "base length");
    let mut other = base_bytes(SIZE);
    other[1128] ^= 1;
    assert_eq!(field(&other), "mark of the base");
    assert_eq!(field(&base_bytes(SIZE)[G..]), "base length");
    diff.write_all_at(b"x", 0).unwrap();
    assert_eq!(field(&base_bytes(SIZE)), "magic");
    diff.write_all_at(b"voiddiff\x02", 0).unwrap();
    assert_eq!(field(&base_bytes(SIZE)), "version");
}

#[test]
fn a_diff_that_was_cut_is_refused() {
    let (base, diff, _) = disk();
    let expected = diff.metadata().unwrap().len();
    for found in [32, 4096, 8192, expected - 1] {
        diff.set_len(found).unwrap();
        match open(&base, &diff) {
            Err(DiskError::Truncated { found: f, expected: e }) => assert_eq!((f, e), (found, expected)),
            other => panic!("{other:?}"),
        }
        assert_eq!(diff.metadata().unwrap().len(), found);
    }
}

#[test]
fn bits_after_the_end_are_refused() {
    let (base, diff, _) = disk();
    diff.write_all_at(&[1 << (GRANULES % 8)], GRANULE + GRANULES as u64 / 8).unwrap();
    assert!(matches!(open(&base, &diff), Err(DiskError::Bitmap)));
}

#[test]
fn a_diff_whose_maker_was_killed_is_made_again() {
    let base = file(&base_bytes(SIZE));
    let diff = file(&[]);
    diff.set_len(12345).unwrap();
    let mut disk = open(&base, &diff).unwrap();
    Op::Write { offset: G, len: G, seed: 9 }.apply(&mut disk).unwrap();
    assert!(read(&open(&base, &diff).unwrap(), G, G) == pattern(9, G));
    // But not when something is in it.
    diff.write_all_at(&[0; 32], 0).unwrap();
    assert!(matches!(open(&base, &diff), Err(DiskError::Header { field: "magic", .. })));
}

#[test]
fn a_base_that_is_no_disk_is_refused() {
    for size in [0, 1, 511, 4095, 4097, 6144] {
        match open(&file(&vec![1; size]), &file(&[])) {
            Err(DiskError::Base(found)) => assert_eq!(found, size as u64),
            other => panic!("{other:?}"),
        }
    }
    let huge = in_memory(&[]);
    huge.set_len((16 << 40) + GRANULE).unwrap();
    assert!(matches!(open(&huge, &file(&[])), Err(DiskError::Base(_))));
}

#[test]
fn what_is_beyond_the_end_is_refused() {
    let (_, _, mut disk) = disk();
    for (offset, len) in [(SIZE as u64, 1), (SIZE as u64 - 1, 2), (u64::MAX, 2), (0, SIZE as u64 + 1)] {
        assert!(disk.zero(offset, len).is_err());
        let mut bytes = vec![0; len as usize];
        assert!(disk.read(offset, &[VolatileSlice::from(&mut bytes[..])]).is_err());
        assert!(disk.write(offset, &[VolatileSlice::from(&mut bytes[..])]).is_err());
    }
    assert!(read(&disk, 0, SIZE) == base_bytes(SIZE));
}

#[test]
fn a_diff_takes_what_was_written_and_gives_it_back() {
    let (_, diff, mut disk) = disk();
    let blocks = |diff: &File| diff.metadata().unwrap().blocks() * 512;
    let empty = blocks(&diff);
    assert!(empty <= 2 * GRANULE, "{empty}");
    Op::Write { offset: 0, len: 16 * G, seed: 3 }.apply(&mut disk).unwrap();
    disk.flush().unwrap();
    let full = blocks(&diff);
    assert!((16 * GRANULE..=24 * GRANULE).contains(&full), "{full}");
    Op::Zero { offset: 0, len: 16 * G }.apply(&mut disk).unwrap();
    disk.flush().unwrap();
    assert!(blocks(&diff) <= 4 * GRANULE, "{}", blocks(&diff));
    assert!(read(&disk, 0, 16 * G).iter().all(|&byte| byte == 0));
}

#[test]
fn more_slices_than_one_call_takes() {
    let (_, _, mut disk) = disk();
    let mut bytes: Vec<[u8; 7]> = (0..5000_u32).map(|index| [index as u8; 7]).collect();
    let expected = bytes.concat();
    let slices: Vec<_> = bytes.iter_mut().map(|bytes| VolatileSlice::from(&mut bytes[..])).collect();
    disk.write(3, &slices).unwrap();
    assert!(read(&disk, 3, expected.len()) == expected);
    for slice in &slices {
        slice.copy_from(&[0_u8; 7]);
    }
    disk.read(3, &slices).unwrap();
    drop(slices);
    assert!(bytes.concat() == expected);
}

#[test]
fn what_the_snapshot_has_zeroed_is_zero() {
    let (base, diff) = (file(&base_bytes(SIZE)), file(&[]));
    let before = [Op::Write { offset: 0, len: 4 * G, seed: 1 }, Op::Zero { offset: G, len: 2 * G }];
    let (lower, mut model) = lower(&base, &before);
    let mut disk = open_over(&base, Some(&lower), &diff).unwrap();
    assert!(model[G..3 * G].iter().all(|&byte| byte == 0));
    assert!(read(&disk, 0, SIZE) == model);
    // The rest of a granule comes from the snapshot, be it data, zeros or what it has not.
    for offset in [G - 512, 3 * G - 512, 4 * G - 512] {
        let op = Op::Write { offset, len: 1024, seed: 7 };
        op.apply(&mut disk).unwrap();
        op.apply_to(&mut model);
    }
    assert!(read(&disk, 0, SIZE) == model);
    assert!(read(&open_over(&base, Some(&lower), &diff).unwrap(), 0, SIZE) == model);
}

#[test]
fn a_snapshots_diff_that_is_none_is_refused_and_left_alone() {
    let (base, diff) = (file(&base_bytes(SIZE)), file(&[]));
    let refused = |lower: &File| match open_over(&base, Some(lower), &diff) {
        Err(error @ DiskError::Lower(_)) => {
            assert_eq!(error.to_string(), "the snapshot's diff cannot be used");
            std::error::Error::source(&error).unwrap().to_string()
        }
        other => panic!("{other:?}"),
    };
    let blank = file(&[]);
    assert_eq!(refused(&blank), "it is blank: nothing has ever been written to it");
    assert_eq!(blank.metadata().unwrap().len(), 0);
    let (lower, _) = lower(&base, &[Op::Write { offset: 0, len: G, seed: 1 }]);
    let len = lower.metadata().unwrap().len();
    lower.write_all_at(&[1 << (GRANULES % 8)], GRANULE + GRANULES as u64 / 8).unwrap();
    assert_eq!(refused(&lower), "the diff's bitmap has bits after the end of the disk");
    lower.set_len(len - 1).unwrap();
    assert!(refused(&lower).ends_with("it has been cut"));
    lower.write_all_at(b"x", 20).unwrap();
    assert!(refused(&lower).starts_with("the diff's checksum is"));
    // The machine's own is not made for a disk that cannot be.
    assert_eq!(diff.metadata().unwrap().len(), 0);
}

#[test]
fn a_host_that_refuses_to_write_loses_nothing() {
    let base = file(&base_bytes(SIZE));
    let diff = file(&[]);
    let mut disk = open(&base, &diff).unwrap();
    Op::Write { offset: 0, len: 2 * G, seed: 5 }.apply(&mut disk).unwrap();
    let sealed = sealed_copy(&diff);
    let mut disk = open(&base, &sealed).unwrap();
    assert!(Op::Write { offset: G, len: 4 * G, seed: 6 }.apply(&mut disk).is_err());
    assert!(Op::Zero { offset: 0, len: 8 * G }.apply(&mut disk).is_err());
    let mut expected = base_bytes(SIZE);
    expected[..2 * G].copy_from_slice(&pattern(5, 2 * G));
    assert!(read(&disk, 0, SIZE) == expected);
    assert!(read(&open(&base, &sealed).unwrap(), 0, SIZE) == expected);
}

/// `diff` as a file that refuses every further write.
fn sealed_copy(diff: &File) -> File {
    let mut bytes = vec![0; diff.metadata().unwrap().len() as usize];
    diff.read_exact_at(&mut bytes, 0).unwrap();
    let copy = in_memory(&bytes);
    fcntl_add_seals(&copy, SealFlags::WRITE).unwrap();
    copy
}

/// A file in memory, for which fdatasync costs nothing and a length means nothing.
pub(super) fn in_memory(bytes: &[u8]) -> File {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let mut file = File::from(memfd_create("test", flags).unwrap());
    file.write_all(bytes).unwrap();
    file
}
