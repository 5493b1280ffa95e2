use std::io::Write as _;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

use super::*;
use crate::memory::{self, Mapped, Pages};
use crate::spec::MemoryMib;

const MIB: u32 = 128;
const PAGES: u64 = (MIB as u64) << 8;
/// Of the parts below and above the hole.
const LOW: u64 = 3 << 18;

/// The pages of the snapshot: the first MiB, those around the hole, where there is one, and the last one.
fn saved(mib: u32) -> Runs {
    let hole = (mib > 3 << 10).then_some((LOW as u32 - 4, 8));
    let all: Vec<_> = [(0, 256)].into_iter().chain(hole).chain([((mib << 8) - 1, 1)]).collect();
    Runs::try_from(all).unwrap()
}

/// With something on every page of the snapshot.
fn mapped(mib: u32) -> GuestMemory {
    let (mut file, runs) = (tempfile::tempfile().unwrap(), saved(mib));
    file.write_all(&vec![0x5a; (runs.pages() * PAGE) as usize]).unwrap();
    memory::map(MemoryMib::try_from(mib).unwrap(), &[Pages { file: &file, offset: 0, runs: &runs }]).unwrap()
}

fn origin(mib: u32) -> Origin {
    let mapped = Mapped::new(Runs::default(), saved(mib), u64::from(mib) << 20);
    Origin { base: None, mapped: Arc::new(mapped) }
}

fn of(memory: &GuestMemory) -> Touched {
    let mib = (pages(memory) >> 8) as u32;
    let pagemap = Pagemap::open().expect("this kernel tells which pages there are");
    Touched::of(memory, Some(&pagemap), Some(&origin(mib))).unwrap()
}

fn touched(runs: &[(u32, u32)]) -> Touched {
    Touched(Runs::try_from(runs.to_vec()).unwrap())
}

fn bytes(version: u32, said: u32, runs: &[(u32, u32)]) -> Vec<u8> {
    let words = runs.iter().flat_map(|(first, count)| [*first, *count]);
    let words = [version, said].into_iter().chain(words).flat_map(u32::to_le_bytes);
    MAGIC.iter().copied().chain(words).collect()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn what_was_written_to_is_told_and_copied_for_the_next() {
    let first = mapped(MIB);
    assert_eq!(of(&first), Touched::default());
    // One that was zero is read, and so are some of the file's.
    first.read_slice(&mut vec![0; 64 << 10], GuestAddress(0)).unwrap();
    first.read_slice(&mut [0], GuestAddress(50 << 20)).unwrap();
    assert_eq!(of(&first), Touched::default());
    // Two with one access; a write of what is there already; what was zero, which is no copy; the last one.
    first.write_slice(b"across", GuestAddress(6 * PAGE - 3)).unwrap();
    first.write_slice(&[0x5a], GuestAddress(8 * PAGE)).unwrap();
    first.write_slice(&[0], GuestAddress(40 << 20)).unwrap();
    first.write_slice(b"last", GuestAddress((128 << 20) - 4)).unwrap();
    let expected = touched(&[(5, 2), (8, 1), (PAGES as u32 - 1, 1)]);
    assert_eq!(of(&first), expected);

    let file = tempfile::tempfile().unwrap();
    expected.write(&file).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 16 + 3 * 8);
    let next = mapped(MIB);
    assert_eq!(Copying::start(file.try_clone().unwrap(), &next).unwrap().finish().unwrap(), expected);
    assert_eq!(of(&next), expected);
    let mut found = vec![0; 1 << 20];
    next.read_slice(&mut found, GuestAddress(0)).unwrap();
    assert!(found.iter().all(|byte| *byte == 0x5a), "to copy a page changes it");
    // The file can be read by more than one.
    assert_eq!(Touched::read(&file, PAGES).unwrap(), expected);
}

#[test]
fn pages_around_the_hole_below_4_gib() {
    let first = mapped(3 * 1024 + MIB);
    first.write_slice(b"x", GuestAddress((3 << 30) - 1)).unwrap();
    first.write_slice(b"x", GuestAddress(4 << 30)).unwrap();
    first.write_slice(b"x", GuestAddress((4 << 30) + 3 * PAGE)).unwrap();
    let expected = touched(&[(LOW as u32 - 1, 2), (LOW as u32 + 3, 1)]);
    assert_eq!(of(&first), expected);
    let places: Vec<_> = expected.places(&first).map(|place| (place.guest, place.len)).collect();
    assert_eq!(places, [((3 << 30) - PAGE, PAGE), (4 << 30, PAGE), ((4 << 30) + 3 * PAGE, PAGE)]);
    let next = mapped(3 * 1024 + MIB);
    expected.copy(&next).unwrap();
    assert_eq!(of(&next), expected);
}

#[test]
fn a_machine_that_was_booted_has_all_its_pages_for_itself() {
    let memory = memory::allocate(MemoryMib::try_from(MIB).unwrap()).unwrap();
    assert!(matches!(Touched::of(&memory, Pagemap::open().as_ref(), None), Err(TouchedError::Booted)));
    assert!(matches!(Touched::of(&mapped(MIB), None, Some(&origin(MIB))), Err(TouchedError::NoPagemap)));
}

#[test]
fn files_that_make_no_sense_are_passed_over() {
    let most = MAX_PAGES as u32;
    for (right, expected) in [
        (bytes(1, 0, &[]), touched(&[])),
        (bytes(1, 3, &[(0, 2), (2, 1), (4, 1)]), touched(&[(0, 3), (4, 1)])),
        (bytes(1, 1, &[(0, PAGES as u32)]), touched(&[(0, PAGES as u32)])),
    ] {
        assert_eq!(Touched::decode(&right, PAGES).unwrap(), expected);
    }
    assert!(Touched::decode(&bytes(1, 1, &[(7, most)]), 1 << 30).is_ok());
    let mut other = bytes(1, 0, &[]);
    other[0] ^= 1;
    let cut = bytes(1, 1, &[(0, 1)])[..23].to_vec();
    for (wrong, part) in [
        (Vec::new(), "of another form"),
        (MAGIC.to_vec(), "of another form"),
        (other, "of another form"),
        (bytes(2, 0, &[]), "of format 2, and this voidrun knows 1"),
        (cut, "another length"),
        (bytes(1, 2, &[(0, 1)]), "another length"),
        (bytes(1, 0, &[(0, 1)]), "another length"),
        (bytes(1, 1, &[(0, 0)]), "empty"),
        (bytes(1, 2, &[(4, 2), (5, 2)]), "out of order"),
        (bytes(1, 2, &[(4, 1), (2, 1)]), "out of order"),
        (bytes(1, 1, &[(PAGES as u32, 1)]), "has not"),
        (bytes(1, 1, &[(1, PAGES as u32)]), "has not"),
        (bytes(1, 1, &[(u32::MAX, u32::MAX)]), "has not"),
    ] {
        let error = Touched::decode(&wrong, PAGES).unwrap_err().to_string();
        assert!(error.contains(part), "{error}: {wrong:?}");
        let memory = mapped(MIB);
        let found = Copying::start(file(&wrong), &memory).unwrap().finish().unwrap_err().to_string();
        assert_eq!(found, error);
        assert_eq!(of(&memory), Touched::default());
    }
    for runs in [&[(7, most + 1)][..], &[(0, most), (most + 1, 1)]] {
        let error = Touched::decode(&bytes(1, runs.len() as u32, runs), 1 << 30);
        assert!(matches!(error, Err(TouchedError::Many)));
    }
    // Sparse, and longer than is ever read.
    let long = file(&bytes(1, u32::MAX, &[]));
    long.set_len(16 + 8 * u64::from(u32::MAX)).unwrap();
    assert!(matches!(Touched::read(&long, 1 << 30), Err(TouchedError::Sense(_))));
}

/// Runs that often make sense, and words that do not.
fn runs() -> impl Strategy<Value = Vec<(u32, u32)>> {
    let low = LOW as u32;
    let near = prop_oneof![0..64_u32, low - 4..low + 4, Just(low + PAGES as u32 - 1), any::<u32>()];
    let count = prop_oneof![4 => 0..4_u32, 1 => any::<u32>()];
    proptest::collection::vec((near, count), 0..4).prop_map(|mut runs| {
        runs.sort_unstable();
        runs
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_passed_over_or_are_pages_of_the_ram(
        runs in runs(),
        flip in proptest::option::weighted(0.3, (0..48_usize, any::<u8>())),
        rest in proptest::option::weighted(0.1, proptest::collection::vec(any::<u8>(), 0..64)),
    ) {
        thread_local!(static MEMORY: GuestMemory = mapped(3 * 1024 + MIB));
        let mut bytes = bytes(1, runs.len() as u32, &runs);
        if let Some((at, value)) = flip
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte = value;
        }
        bytes.extend(rest.unwrap_or_default());
        let Ok(touched) = Touched::decode(&bytes, LOW + PAGES) else { return Ok(()) };
        MEMORY.with(|memory| {
            let (mut end, mut len) = (0, 0);
            for place in touched.places(memory) {
                prop_assert!(place.guest >= end && place.len > 0);
                let slice = memory.get_slice(GuestAddress(place.guest), place.len as usize);
                prop_assert_eq!(slice.unwrap().ptr_guard().as_ptr(), place.host.cast_const());
                (end, len) = (place.guest + place.len, len + place.len);
            }
            prop_assert_eq!(len, touched.0.pages() * PAGE);
            Ok(())
        })?;
    }

    #[test]
    fn any_other_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(Touched::decode(&bytes, PAGES).is_err());
    }
}
