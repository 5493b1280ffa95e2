//! Copies of diffs against what their disks read as.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use proptest::prelude::*;

use super::disk_tests::{G, Op, SIZE, base_bytes, file, in_memory, lower, op, open, open_over, read};
use super::{DiskError, GRANULE, copy_diff};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Within a file system and between two of them.
    #[test]
    fn a_copy_alone_is_what_both_diffs_are(
        before in prop::option::of(prop::collection::vec(op(), 0..20)),
        ops in prop::option::of(prop::collection::vec(op(), 0..20)),
        elsewhere in any::<bool>(),
    ) {
        let base = in_memory(&base_bytes(SIZE));
        let (lower, mut model) = match before.map(|ops| lower(&base, &ops)) {
            Some((lower, model)) => (Some(lower), model),
            None => (None, base_bytes(SIZE)),
        };
        let diff = in_memory(&[]);
        // Without any the diff is blank.
        if let Some(ops) = ops {
            let mut disk = open_over(&base, lower.as_ref(), &diff).unwrap();
            for op in ops {
                op.apply(&mut disk).unwrap();
                op.apply_to(&mut model);
            }
        }
        let files = [Some(&diff), lower.as_ref()];
        let before = files.map(|file| file.map(content));
        let to = if elsewhere { tempfile::tempfile().unwrap() } else { in_memory(&[]) };
        copy_diff(&base, lower.as_ref(), &diff, &to).unwrap();
        prop_assert!(files.map(|file| file.map(content)) == before, "what is copied has changed");
        // As a snapshot's, and as a machine's own.
        let above = in_memory(&[]);
        prop_assert!(read(&open_over(&base, Some(&to), &above).unwrap(), 0, SIZE) == model);
        prop_assert!(read(&open(&base, &to).unwrap(), 0, SIZE) == model);
    }
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_copy_takes_no_more_than_what_was_written() {
    let base = tempfile::tempfile().unwrap();
    base.set_len(1 << 30).unwrap();
    let (first, second) = (file(&[]), file(&[]));
    let mut disk = open(&base, &first).unwrap();
    Op::Write { offset: 5 * G, len: 64 * G, seed: 1 }.apply(&mut disk).unwrap();
    Op::Zero { offset: 8 << 20, len: 900 << 20 }.apply(&mut disk).unwrap();
    let mut disk = open_over(&base, Some(&first), &second).unwrap();
    Op::Write { offset: 20 * G, len: 64 * G, seed: 2 }.apply(&mut disk).unwrap();
    Op::Write { offset: 100 << 20, len: G, seed: 3 }.apply(&mut disk).unwrap();
    for (lower, diff, granules) in [(None, &first, 64), (Some(&first), &second, 80)] {
        for to in [file(&[]), in_memory(&[])] {
            copy_diff(&base, lower, diff, &to).unwrap();
            let taken = to.metadata().unwrap().blocks() * 512;
            // The header, the bits of what was zeroed, and what the file system needs to know where they are.
            assert!((granules * GRANULE..(granules + 32) * GRANULE).contains(&taken), "{taken}");
            let (copy, disk) = (open(&base, &to).unwrap(), open_over(&base, lower, diff).unwrap());
            for (offset, len) in [(0, 100 * G), (100 << 20, 2 * G), ((908 << 20) - G, 2 * G)] {
                assert!(read(&copy, offset, len) == read(&disk, offset, len), "{offset}");
            }
        }
    }
}

#[test]
fn a_diff_that_was_never_used_is_copied_as_one_without_granules() {
    let (base, blank, to) = (file(&base_bytes(SIZE)), file(&[]), file(&[]));
    copy_diff(&base, None, &blank, &to).unwrap();
    assert_eq!(blank.metadata().unwrap().len(), 0);
    let above = file(&[]);
    assert!(read(&open_over(&base, Some(&to), &above).unwrap(), 0, SIZE) == base_bytes(SIZE));
    assert!(matches!(copy_diff(&base, Some(&blank), &to, &above), Err(DiskError::Lower(_))));
}

#[test]
fn a_damaged_diff_is_not_copied() {
    let base = file(&base_bytes(SIZE));
    let (diff, _) = lower(&base, &[Op::Write { offset: 0, len: G, seed: 1 }]);
    diff.write_all_at(b"x", 0).unwrap();
    let to = file(&[]);
    assert!(matches!(copy_diff(&base, None, &diff, &to), Err(DiskError::Header { field: "magic", .. })));
    assert_eq!(to.metadata().unwrap().len(), 0);
}
