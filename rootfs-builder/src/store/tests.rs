use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::image::{Descriptor, ImageConfig, Manifest};
use crate::reference::LocalName;

const ALL: Budget = Budget { bytes: u64::MAX, grace: Duration::ZERO };

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor { digest: Digest::of(bytes), size: bytes.len() as u64, media_type: String::new() }
}

fn name(text: &str) -> ImageName {
    text.parse::<LocalName>().unwrap().into()
}

fn add_blob(store: &Store, bytes: &[u8]) -> Descriptor {
    let descriptor = descriptor(bytes);
    if let Ingest::Missing(part) = store.ingest(&descriptor, || {}).unwrap() {
        part.file().write_all(bytes).unwrap();
        part.commit().unwrap();
    }
    descriptor
}

fn recipe(layers: &[&[u8]]) -> (Recipe, ImageRecordParts) {
    let manifest = Manifest {
        digest: Digest::of(&layers.concat()),
        config: descriptor(b"config"),
        layers: layers.iter().map(|layer| descriptor(layer)).collect(),
    };
    let recipe = Recipe {
        manifest: manifest.digest,
        diff_ids: layers.iter().map(|layer| Digest::of(layer)).collect(),
        platform: "linux/amd64".into(),
        size: None,
        journal: true,
        writer: 1,
    };
    (recipe, ImageRecordParts { manifest, config: ImageConfig::default(), inodes: 0 })
}

/// As a pull does it, with the layers' bytes for a file system. Without a name it stops before the last step.
fn add_image(store: &Store, layers: &[&[u8]], as_name: Option<&str>) -> Digest {
    for layer in layers {
        add_blob(store, layer);
    }
    let (recipe, parts) = recipe(layers);
    let derivation = recipe.derivation();
    let pending = store.begin(derivation, || {}).unwrap();
    if pending.present().unwrap().is_none() {
        let mut file = pending.create().unwrap();
        file.write_all(&layers.concat()).unwrap();
        pending.commit(&file, recipe, parts).unwrap();
    }
    if let Some(as_name) = as_name {
        pending.name(&name(as_name)).unwrap();
    }
    derivation
}

fn collect(store: &Store, budget: Budget) -> (Vec<Removal>, Report) {
    let mut removed = Vec::new();
    let report = store.collect(budget, &mut |removal| removed.push(removal)).unwrap();
    (removed, report)
}

fn age(path: &Path, seconds: u64) {
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn blobs_come_whole_or_not_at_all() {
    let (_dir, store) = store();
    let wanted = descriptor(b"hello");
    let Ingest::Missing(part) = store.ingest(&wanted, || {}).unwrap() else { panic!("present") };
    part.file().write_all(b"hel").unwrap();
    drop(part);
    assert!(store.blob(&wanted.digest, wanted.size).unwrap().is_none());
    // The next one continues behind what is there.
    let Ingest::Missing(part) = store.ingest(&wanted, || {}).unwrap() else { panic!("present") };
    assert_eq!(part.file().metadata().unwrap().len(), 3);
    assert!(matches!(part.commit(), Err(StoreError::Size { found: 3, .. })));
    add_blob(&store, b"hello");
    // (`add_blob` wrote from the start of the kept part.)
    let mut text = String::new();
    store.blob(&wanted.digest, wanted.size).unwrap().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert!(matches!(store.ingest(&wanted, || {}).unwrap(), Ingest::Present(_)));
}

#[test]
fn one_brings_a_blob_and_the_other_waits() {
    let (_dir, store) = store();
    let wanted = descriptor(b"hello");
    let Ingest::Missing(part) = store.ingest(&wanted, || {}).unwrap() else { panic!("present") };
    let (announce, waits) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| store.ingest(&wanted, move || announce.send(()).unwrap()).unwrap());
        waits.recv().unwrap();
        part.file().write_all(b"hello").unwrap();
        part.commit().unwrap();
        assert!(matches!(other.join().unwrap(), Ingest::Present(_)));
    });
}

#[test]
fn damaged_blobs_are_found() {
    let (_dir, store) = store();
    let (good, bad) = (add_blob(&store, b"good"), add_blob(&store, b"soon bad"));
    let path = store.blob_path(&bad.digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"now bad!").unwrap();
    assert_eq!(store.remove_damaged(&[good.clone(), bad.clone()]).unwrap(), 1);
    assert!(store.blob(&good.digest, good.size).unwrap().is_some());
    assert!(store.blob(&bad.digest, bad.size).unwrap().is_none());
}

#[test]
fn what_a_download_has_brought_is_not_needed_again() {
    let (_dir, store) = store();
    let bytes = vec![7; 64 << 10];
    let wanted = descriptor(&bytes);
    assert_eq!(store.missing_bytes(&wanted).unwrap(), 64 << 10);
    let Ingest::Missing(part) = store.ingest(&wanted, || {}).unwrap() else { panic!("present") };
    part.file().write_all(&bytes[..32 << 10]).unwrap();
    part.file().sync_all().unwrap();
    assert_eq!(store.missing_bytes(&wanted).unwrap(), 32 << 10);
    part.file().write_all(&bytes[32 << 10..]).unwrap();
    part.commit().unwrap();
    assert_eq!(store.missing_bytes(&wanted).unwrap(), 0);
}

#[test]
fn an_image_counts_when_its_record_and_file_are_there() {
    let (_dir, store) = store();
    let derivation = add_image(&store, &[b"a"], Some("x"));
    assert_eq!(store.image(&name("x")).unwrap().reference.image, derivation);
    let (file, record) = (store.image_path(&derivation), store.image_record_path(&derivation));
    let whole = std::fs::read(&record).unwrap();

    for length in [0, 1, whole.len() / 2, whole.len() - 2] {
        std::fs::write(&record, &whole[..length]).unwrap();
        assert!(matches!(store.image(&name("x")), Err(StoreError::Damaged { .. })));
        assert!(store.begin(derivation, || {}).unwrap().present().unwrap().is_none());
        assert_eq!(store.list().unwrap().damaged.len(), 1);
    }
    // A record that speaks of another image.
    let text = String::from_utf8(whole.clone()).unwrap().replace("amd64", "arm64");
    std::fs::write(&record, text).unwrap();
    assert!(matches!(store.image(&name("x")), Err(StoreError::Damaged { .. })));

    std::fs::write(&record, &whole).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(store.image(&name("x")), Err(StoreError::Incomplete { .. })));
    std::fs::write(&file, b"longer than before").unwrap();
    assert!(matches!(store.image(&name("x")), Err(StoreError::Incomplete { .. })));
    assert!(store.begin(derivation, || {}).unwrap().present().unwrap().is_none());
    std::fs::remove_file(&file).unwrap();
    add_image(&store, &[b"a"], None);
    assert!(store.image(&name("x")).is_ok());
}

#[test]
fn a_name_is_not_given_to_what_is_gone() {
    let (_dir, store) = store();
    let pending = store.begin(Digest::of(b"nothing"), || {}).unwrap();
    assert!(matches!(pending.name(&name("x")), Err(StoreError::Gone(_))));
    assert!(!store.has_reference(&name("x")));
}

#[test]
fn gc_keeps_what_names_reach_and_what_is_young() {
    let (_dir, store) = store();
    let kept = add_image(&store, &[b"shared", b"kept"], Some("kept"));
    let lost = add_image(&store, &[b"shared", b"lost"], None);
    let (removed, report) = collect(&store, Budget { grace: Duration::from_mins(1), ..ALL });
    assert_eq!((removed, report.freed_bytes), (Vec::new(), 0));
    assert!(report.kept_by_grace_bytes > 0, "gc can say why it removes nothing");

    let (removed, report) = collect(&store, ALL);
    assert_eq!(report.kept_by_grace_bytes, 0);
    let mut names: Vec<_> = removed.iter().map(|removal| (removal.kind, removal.name.clone())).collect();
    names.sort_by_key(|(_, name)| name.clone());
    let mut expected = [(Removed::Image, lost.to_string()), (Removed::Blob, Digest::of(b"lost").to_string())];
    expected.sort_by_key(|(_, name)| name.clone());
    assert_eq!(names, expected);
    assert_eq!(report.freed_bytes, removed.iter().map(|removal| removal.freed_bytes).sum::<u64>());
    assert_eq!(store.image(&name("kept")).unwrap().reference.image, kept);
    assert_eq!(std::fs::read_dir(store.root().join("locks")).unwrap().count(), 1);
}

#[test]
fn gc_skips_what_is_being_made() {
    let (_dir, store) = store();
    let (recipe, parts) = recipe(&[b"layer"]);
    let pending = store.begin(recipe.derivation(), || {}).unwrap();
    let mut file = pending.create().unwrap();
    let Ingest::Missing(part) = store.ingest(&descriptor(b"layer"), || {}).unwrap() else {
        panic!("present")
    };
    let scratch = store.scratch().unwrap();
    scratch.create(0).unwrap();
    assert_eq!(collect(&store, ALL).0, []);
    part.file().write_all(b"layer").unwrap();
    let mut blob = part.commit().unwrap();
    // A blob that nothing reaches yet goes, but whoever has it open goes on reading.
    assert_eq!(collect(&store, ALL).0.len(), 1);
    let mut text = String::new();
    blob.read_to_string(&mut text).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    pending.commit(&file, recipe, parts).unwrap();
    assert_eq!(collect(&store, ALL).0, []);
    pending.name(&name("x")).unwrap();
    drop(pending);
    assert_eq!(collect(&store, ALL).0, []);
    assert!(store.image(&name("x")).is_ok());
}

#[test]
fn gc_sweeps_what_the_dead_have_left() {
    let (_dir, store) = store();
    let ingest = store.ingest_dir();
    let hex = Digest::of(b"x").hex();
    for leftover in [format!("{hex}.part"), format!("{hex}.ext4.part"), "record-abc.tmp".into()] {
        std::fs::write(ingest.join(leftover), b"x").unwrap();
    }
    std::fs::create_dir(ingest.join("stream-dead")).unwrap();
    std::fs::write(ingest.join("stream-dead/1"), b"x").unwrap();
    std::fs::write(ingest.join("not-ours"), b"x").unwrap();
    let young = Budget { grace: Duration::from_mins(1), ..ALL };
    // What cannot be continued goes at once; only a download is worth the wait.
    let (removed, report) = collect(&store, young);
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert!(report.remaining_bytes > 0, "what is left in ingest counts");
    assert_eq!(collect(&store, young).0, []);
    assert_eq!(collect(&store, ALL).0.len(), 2);
    let left: Vec<_> = std::fs::read_dir(&ingest).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["not-ours"]);
}

#[test]
fn an_archive_begins_with_the_leftovers_of_the_dead() {
    let (_dir, store) = store();
    let ingest = store.ingest_dir();
    let other = store.scratch().unwrap();
    other.create(1).unwrap();
    std::fs::create_dir(ingest.join("stream-dead")).unwrap();
    std::fs::write(ingest.join("stream-dead/1"), b"x").unwrap();
    let (dead, alive) = (Digest::of(b"dead"), Digest::of(b"alive"));
    std::fs::write(store.image_part_path(&dead), b"x").unwrap();
    let pending = store.begin(alive, || {}).unwrap();
    pending.create().unwrap();
    let part = store.part_path(&dead);
    std::fs::write(&part, b"x").unwrap();

    let scratch = store.scratch().unwrap();
    assert!(!ingest.join("stream-dead").exists() && !store.image_part_path(&dead).exists());
    assert!(other.path(1).exists() && store.image_part_path(&alive).exists() && part.exists());
    drop((scratch, pending));
    assert!(!store.image_part_path(&alive).exists(), "what is not committed goes with its owner");
}

#[test]
fn the_budget_costs_the_least_recently_used() {
    let (_dir, store) = store();
    let layers: [&[u8]; 3] = [b"oldest", b"middle", b"newest"];
    add_image(&store, &layers, Some("x"));
    for (layer, seconds) in layers.iter().zip([3000, 2000, 1000]) {
        age(&store.blob_path(&Digest::of(layer)), seconds);
    }
    let total = collect(&store, ALL).1.remaining_bytes;
    let each = total / 4;
    let budget = |bytes, grace| Budget { bytes, grace: Duration::from_secs(grace) };
    assert_eq!(collect(&store, budget(total - 1, 3500)).0, []);
    let (removed, report) = collect(&store, budget(total - 1, 0));
    assert_eq!(
        removed.iter().map(|removal| removal.name.clone()).collect::<Vec<_>>(),
        [Digest::of(b"oldest").to_string()]
    );
    assert_eq!((report.remaining_bytes, report.over_budget_bytes), (total - each, 0));
    // A use makes it young.
    store.blob(&Digest::of(b"middle"), 6).unwrap().unwrap();
    let (removed, _) = collect(&store, budget(total - each - 1, 0));
    assert_eq!(removed[0].name, Digest::of(b"newest").to_string());
    // Images that have a name stay, whatever the budget.
    let (_, report) = collect(&store, budget(0, 0));
    assert_eq!(report.over_budget_bytes, each);
    assert!(store.image(&name("x")).is_ok());
}

#[test]
fn a_removed_name_takes_only_its_own() {
    let (_dir, store) = store();
    add_image(&store, &[b"shared", b"one"], Some("one"));
    add_image(&store, &[b"shared", b"two"], Some("two"));
    add_image(&store, &[b"shared", b"one"], Some("alias"));
    let mut removed = Vec::new();
    store.remove(&[name("one")], &mut |removal| removed.push(removal.kind)).unwrap();
    assert_eq!(removed, [Removed::Reference]);
    assert!(matches!(store.remove(&[name("two"), name("none")], &mut |_| {}), Err(StoreError::NotFound(_))));
    assert!(store.image(&name("two")).is_ok(), "nothing is removed when one of the names is wrong");
    removed.clear();
    store.remove(&[name("alias")], &mut |removal| removed.push(removal.kind)).unwrap();
    assert_eq!(removed, [Removed::Reference, Removed::Image, Removed::Blob]);
    assert!(store.blob(&Digest::of(b"shared"), 6).unwrap().is_some());
}

#[test]
fn the_image_of_a_sandbox_or_a_snapshot_stays_without_a_name() {
    for (user, record) in [("sandboxes/0123456789ab", "spec.json"), ("snapshots/base", "snapshot.json")] {
        let (_dir, store) = store();
        let image = add_image(&store, &[b"layer"], Some("tool"));
        let directory = store.root().join(user);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(record), format!("{{\"version\":1,\"image\":\"{image}\"}}")).unwrap();
        // One that is being made, and one that was never finished.
        std::fs::create_dir_all(directory.with_file_name("aaaaaaaaaaaa")).unwrap();
        std::fs::create_dir_all(directory.with_file_name("bbbbbbbbbbbb")).unwrap();
        std::fs::write(directory.with_file_name("bbbbbbbbbbbb").join(record), b"{\"image\":").unwrap();

        let refused = store.remove(&[name("tool")], &mut |_| panic!("nothing is removed")).unwrap_err();
        let (kind, called) =
            if record == "spec.json" { ("sandbox", "0123456789ab") } else { ("snapshot", "base") };
        assert!(
            refused
                .to_string()
                .contains(&format!("tool is what others are made of: remove the {kind} {called}"))
        );
        // Another image takes the name.
        add_image(&store, &[b"other"], Some("tool"));
        store.remove(&[name("tool")], &mut |_| {}).unwrap();
        collect(&store, ALL);
        assert!(store.image_path(&image).exists());

        std::fs::remove_dir_all(&directory).unwrap();
        collect(&store, ALL);
        assert!(!store.image_path(&image).exists());
    }
}

#[test]
fn an_open_image_outlives_its_removal() {
    let (_dir, store) = store();
    add_image(&store, &[b"data"], Some("x"));
    let mut image = store.image(&name("x")).unwrap();
    store.remove(&[name("x")], &mut |_| {}).unwrap();
    let mut text = String::new();
    image.rootfs.read_to_string(&mut text).unwrap();
    assert_eq!(text, "data");
}

#[test]
fn the_store_is_private_and_images_are_read_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, _) = store();
    let root = dir.path().join("new/store");
    let store = Store::open(&root).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for dir in ["", "blobs", "blobs/sha256", "ingest", "images", "refs", "locks"] {
        assert_eq!(mode(&root.join(dir)), 0o700, "{dir}");
    }
    let derivation = add_image(&store, &[b"data"], Some("x"));
    assert_eq!(mode(&store.image_path(&derivation)), 0o444);
    assert_eq!(mode(&store.blob_path(&Digest::of(b"data"))), 0o444);
}
