//! What the store keeps, shares and makes anew.

use serde_json::json;

use crate::support::{Layout, Ran, Voidrun, digest, gzip, layer, noise};
use crate::two_layers;

#[test]
fn a_second_image_brings_only_what_is_missing() {
    let voidrun = Voidrun::new();
    let base = layer(&[("base", b"base")]);
    let first = Layout::of(&[base.clone(), layer(&[("a", b"a")])]);
    let second = Layout::of(&[base.clone(), layer(&[("b", b"b")])]);
    voidrun.run(&["images", "pull", &voidrun.layout("first", &first)]).ok();
    let pulled = voidrun.run(&["images", "pull", &voidrun.layout("second", &second)]).ok();
    assert_eq!(pulled.stderr.matches(": present").count(), 1, "{pulled:?}");
    assert_eq!(pulled.stderr.matches(": done").count(), 1, "{pulled:?}");

    // What they share stays as long as one of them does.
    voidrun.run(&["images", "rm", "first"]).ok();
    assert_eq!(voidrun.names(), ["second"]);
    let shared = digest(&gzip(&base))[7..].to_owned();
    assert_eq!(voidrun.files("blobs/sha256").len(), 2);
    assert!(voidrun.files("blobs/sha256").contains(&shared));
    voidrun.run(&["images", "rm", "second"]).ok();
    for dir in ["blobs/sha256", "images", "refs", "ingest"] {
        assert_eq!(voidrun.files(dir), Vec::<String>::new(), "{dir}");
    }
    voidrun
        .run(&["images", "rm", "second"])
        .fails(1, &["no image second (docker.io/library/second:latest)", "images ls"]);
}

#[test]
fn another_size_is_made_from_the_kept_layers() {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&two_layers()));
    voidrun.run(&["images", "pull", &source]).ok();
    std::fs::remove_dir_all(voidrun.path("tool")).unwrap();
    let pulled = voidrun.run(&["images", "pull", "tool", "--size", "1GiB", "--name", "small"]).ok();
    assert_eq!(pulled.stderr.matches(": present").count(), 2, "{pulled:?}");
    assert_eq!(voidrun.inspect("small")["sizeBytes"], json!(1u64 << 30));
    assert_eq!(voidrun.inspect("tool")["sizeBytes"], json!(10u64 << 30));
    assert_ne!(voidrun.inspect("tool")["derivation"], voidrun.inspect("small")["derivation"]);

    // A budget costs the layers; the images stay.
    voidrun.run(&["images", "gc", "--budget", "0", "--grace", "0s"]).ok();
    assert_eq!(voidrun.files("blobs/sha256"), Vec::<String>::new());
    assert_eq!(voidrun.names(), ["small", "tool"]);
    voidrun.run(&["images", "pull", "tool"]).ok();
    voidrun
        .run(&["images", "pull", "tool", "--size", "2GiB"])
        .fails(1, &["no longer kept", "import it again"]);
    // With the source at hand they come again.
    let source = voidrun.layout("tool", &Layout::of(&two_layers()));
    let pulled = voidrun.run(&["images", "pull", &source, "--size", "2GiB"]).ok();
    assert_eq!(pulled.stderr.matches(": done").count(), 2, "{pulled:?}");
}

#[test]
fn a_stored_image_keeps_its_shape() {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&two_layers()));
    voidrun.run(&["images", "pull", &source, "--size", "1GiB"]).ok();
    let before = voidrun.inspect("tool");
    let again = voidrun.run(&["images", "pull", "tool"]).ok();
    assert!(again.stderr.contains("tool: already here"), "{again:?}");
    assert_eq!(voidrun.inspect("tool")["derivation"], before["derivation"]);
    let ran = voidrun.run(&["images", "pull", "tool", "--platform", "linux/s390x"]);
    ran.fails(1, &["the image is for linux/amd64, not for linux/s390x"]);

    // Another image under the name is worth a word.
    let other = voidrun.layout("other", &Layout::of(&two_layers()[..1]));
    let ran = voidrun.run(&["images", "pull", &other, "--name", "tool"]).ok();
    assert!(ran.stderr.contains(&format!("tool was {} until now", before["digest"].as_str().unwrap())));
    assert!(ran.stderr.contains("1 layer, "), "{ran:?}");
}

/// A member of an archive that no disk holds, in a file and in a pipe.
#[test]
fn no_space_is_told_with_how_much_is_needed() {
    let voidrun = Voidrun::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("blobs/x").unwrap();
    header.set_size(1 << 60);
    header.set_cksum();
    let file = voidrun.file("huge.tar", header.as_bytes());
    let words = &["not enough space", "at least about 1073741824 GiB", "gc --grace 0s"];
    voidrun.run(&["images", "import", "x", &file]).fails(1, words);
    voidrun.run_with_stdin(&["images", "import", "x"], header.as_bytes()).fails(1, words);
    assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
}

/// A store that is full in the middle of a conversion: never fewer bytes needed than are free.
#[test]
fn a_full_disk_needs_more_than_is_free() {
    let voidrun = Voidrun::new();
    let layout = Layout::of(&[layer(&[("big", &noise(9_000_000, 1))])]);
    let (dir, file) = (voidrun.layout("big", &layout), voidrun.file("big.oci.tar", &layout.tar()));
    std::fs::create_dir(voidrun.store()).unwrap();
    for source in [dir, format!("oci:{file}")] {
        let script =
            "mount -t tmpfs -o size=12m none \"$VOIDRUN_HOME\" || exit 77; \"$0\" images pull \"$1\"";
        let ran = std::process::Command::new("unshare")
            .args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_voidrun"), &source])
            .env("VOIDRUN_HOME", voidrun.store())
            .env("XDG_CONFIG_HOME", voidrun.path("config"))
            .output();
        let ran = match ran.map(Ran::from) {
            Ok(ran) if ran.code == Some(1) && ran.stderr.contains("cannot pull") => ran,
            ran => {
                println!("skipped: no user namespace, no tmpfs: {ran:?}");
                return;
            }
        };
        let words: Vec<&str> = ran.stderr.split(' ').collect();
        let before = |end: &[&str]| {
            let at = words.windows(end.len()).position(|words| words == end).unwrap();
            words[at - 1].parse::<u64>().unwrap()
        };
        let (needed, free) = (before(&["MiB", "are", "needed,"]), before(&["MiB", "are", "free;"]));
        assert!(needed > free && free >= 3, "{ran:?}");
    }
}

#[test]
fn a_blob_that_went_bad_in_the_store_is_fetched_again() {
    let voidrun = Voidrun::new();
    let layers = two_layers();
    let source = voidrun.layout("tool", &Layout::of(&layers));
    voidrun.run(&["images", "pull", &source]).ok();
    let blob = voidrun.store().join("blobs/sha256").join(&digest(&gzip(&layers[0]))[7..]);
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, bytes).unwrap();
    voidrun.run(&["images", "pull", &source, "--size", "1GiB"]).ok();
    assert_eq!(digest(&std::fs::read(&blob).unwrap()), digest(&gzip(&layers[0])));
}

/// A store on a medium that cannot be written to.
#[test]
fn a_store_may_be_read_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let voidrun = Voidrun::new();
    voidrun.run(&["images", "pull", &voidrun.layout("tool", &Layout::of(&two_layers()))]).ok();
    let lock = voidrun.store().join("locks/store");
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o444)).unwrap();
    std::fs::set_permissions(voidrun.store().join("locks"), std::fs::Permissions::from_mode(0o555)).unwrap();
    assert_eq!(voidrun.names(), ["tool"]);
    assert_eq!(voidrun.inspect("tool")["reference"], "tool");
    std::fs::set_permissions(voidrun.store().join("locks"), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_store_of_another_format_is_left_alone() {
    let voidrun = Voidrun::new();
    voidrun.run(&["images", "ls"]).ok();
    std::fs::write(voidrun.store().join("store.json"), r#"{"format":2}"#).unwrap();
    voidrun.run(&["images", "ls"]).fails(1, &["format 2", "knows 1"]);
    std::fs::write(voidrun.store().join("store.json"), "").unwrap();
    voidrun.run(&["images", "ls"]).fails(1, &["store.json is damaged"]);
}
