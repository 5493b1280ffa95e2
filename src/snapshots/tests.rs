use rootfs_builder::image::{Digest, ImageConfig};
use vmm::spec::{Cpus, MemoryMib};

use super::*;
use crate::sandbox;

fn record() -> Record {
    let sandbox = sandbox::Record::new(
        Digest::of(b"image"),
        "debian".into(),
        ImageConfig::default(),
        1 << 20,
        "/vmlinux".into(),
        Cpus::default(),
        MemoryMib::default(),
    );
    Record::of(&sandbox, [("team".to_owned(), "infra".to_owned())].into())
}

/// With a disk and a machine, as those who make one leave it.
fn draft(snapshots: &Snapshots) -> Draft {
    let draft = snapshots.draft().unwrap();
    draft.disk().unwrap().write_all(b"disk").unwrap();
    std::fs::write(draft.machine(), b"machine").unwrap();
    draft
}

fn entries(snapshots: &Snapshots) -> usize {
    std::fs::read_dir(&snapshots.root).unwrap().count()
}

#[test]
fn one_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(dir.path().join("snapshots"));
    assert!(snapshots.list().unwrap().0.is_empty());
    assert!(matches!(snapshots.find("a"), Err(SnapshotsError::NotFound(_))));

    let unfinished = draft(&snapshots);
    assert!(snapshots.list().unwrap().0.is_empty());
    drop(unfinished);
    assert_eq!(entries(&snapshots), 0);

    let record = record();
    draft(&snapshots).keep("a", &record).unwrap();
    let found = snapshots.find("a").unwrap();
    assert_eq!((&*found.name, &found.record), ("a", &record));
    assert_eq!(std::fs::read(found.disk()).unwrap(), b"disk");
    assert_eq!(io::read_to_string(&found.machine).unwrap(), "machine");
    assert_eq!(entries(&snapshots), 1);

    // The one that there is stays as it is, and nothing is left of the other.
    let second = draft(&snapshots);
    std::fs::write(second.machine(), b"other").unwrap();
    assert!(matches!(second.keep("a", &record), Err(SnapshotsError::Taken(_))));
    drop(second);
    assert_eq!(io::read_to_string(&snapshots.find("a").unwrap().machine).unwrap(), "machine");
    assert_eq!(entries(&snapshots), 1);

    // Somebody who was killed left this.
    std::mem::forget(draft(&snapshots));
    assert_eq!((entries(&snapshots), snapshots.list().unwrap().0.len()), (2, 1));
    snapshots.sweep().unwrap();
    assert_eq!((entries(&snapshots), snapshots.list().unwrap().0.len()), (1, 1));
}

#[test]
fn what_was_made_from_one_outlives_it() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(dir.path().to_owned());
    draft(&snapshots).keep("a", &record()).unwrap();
    let found = snapshots.find("a").unwrap();
    let link = dir.path().join("link");
    std::fs::hard_link(found.disk(), &link).unwrap();
    snapshots.remove("a").unwrap();
    assert!(matches!(snapshots.find("a"), Err(SnapshotsError::NotFound(_))));
    assert!(matches!(snapshots.remove("a"), Err(SnapshotsError::NotFound(_))));
    assert_eq!(std::fs::read(&link).unwrap(), b"disk");
    assert_eq!(io::read_to_string(&found.machine).unwrap(), "machine");
    assert_eq!(entries(&snapshots), 1, "the link alone");
}

#[test]
fn a_record_of_another_version_is_told_and_does_not_hide_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(dir.path().to_owned());
    for name in ["a", "b", "c"] {
        draft(&snapshots).keep(name, &record()).unwrap();
    }
    let path = dir.path().join("a").join(RECORD);
    let newer = std::fs::read_to_string(&path).unwrap().replace("\"version\":1", "\"version\":2");
    std::fs::write(&path, newer).unwrap();
    std::fs::write(dir.path().join("b").join(RECORD), "{").unwrap();
    let error = snapshots.find("a").unwrap_err();
    assert!(crate::daemon::chain(&error).contains("version 2"), "{error:?}");
    let (found, mut unreadable) = snapshots.list().unwrap();
    unreadable.sort();
    assert_eq!(found.into_iter().map(|found| found.name).collect::<Vec<_>>(), ["c"]);
    assert_eq!(unreadable, ["a", "b"]);
    // They take their names, and can be removed.
    assert!(matches!(draft(&snapshots).keep("a", &record()), Err(SnapshotsError::Taken(_))));
    snapshots.remove("a").unwrap();
    assert!(!snapshots.is_there("a"));
}

#[test]
fn using_one_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(dir.path().to_owned());
    draft(&snapshots).keep("a", &record()).unwrap();
    let long_ago = SystemTime::now() - std::time::Duration::from_secs(1000);
    File::open(dir.path().join("a").join(RECORD)).unwrap().set_modified(long_ago).unwrap();
    assert!(snapshots.used("a").unwrap().elapsed().unwrap().as_secs() >= 999);
    snapshots.touch("a");
    assert!(snapshots.used("a").unwrap().elapsed().unwrap().as_secs() < 900);
    assert_eq!(snapshots.used("b"), None);
}

#[test]
fn what_is_touched_first_is_the_snapshots_that_it_was_found_of() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(dir.path().to_owned());
    draft(&snapshots).keep("a", &record()).unwrap();
    let found = snapshots.find("a").unwrap();
    assert!(found.touched.is_none());
    found.place().unwrap().keep_touched(b"pages").unwrap();
    let text = |found: Snapshot| io::read_to_string(found.touched.unwrap()).unwrap();
    assert_eq!(text(snapshots.find("a").unwrap()), "pages");
    found.place().unwrap().keep_touched(b"others").unwrap();
    assert_eq!(text(snapshots.find("a").unwrap()), "others");
    // Another one has the name by now.
    snapshots.remove("a").unwrap();
    draft(&snapshots).keep("a", &record()).unwrap();
    assert!(found.place().unwrap().keep_touched(b"pages").is_err());
    assert!(snapshots.find("a").unwrap().touched.is_none());
    // Somebody was killed at it.
    std::fs::write(dir.path().join("a/touched.0123"), "pa").unwrap();
    snapshots.sweep().unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 3);
}
