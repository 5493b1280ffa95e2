//! `voidrun images ...`, as users run it, on sources that are on this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::json;
use support::{Layout, Ran, Voidrun, config, digest, for_platform, gzip, layer, noise, tagged, tar, zstd};

fn two_layers() -> Vec<Vec<u8>> {
    vec![layer(&[("etc/os-release", b"NAME=test\n")]), layer(&[("app/main", b"#!/bin/sh\n")])]
}

#[test]
fn a_layout_directory_becomes_an_image() {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&two_layers()));
    let pulled = voidrun.run(&["images", "pull", &source]).ok();
    assert!(pulled.stdout.starts_with("tool sha256:"), "{pulled:?}");
    assert!(pulled.stderr.contains("converting layer 2 of 2"), "{pulled:?}");

    let image = voidrun.inspect("tool");
    assert_eq!(image["reference"], "tool");
    assert_eq!(image["kind"], "local");
    assert_eq!(image["platform"], "linux/amd64");
    assert_eq!(image["sizeBytes"], json!(10u64 << 30));
    assert_eq!(image["layers"].as_array().unwrap().len(), 2);
    assert_eq!(image["layers"][0]["diffId"], digest(&two_layers()[0]));
    assert_eq!(image["config"]["cmd"], json!(["/bin/sh"]));
    assert_eq!(image["config"]["workingDir"], "/app");
    assert_eq!(image["config"]["exposedPorts"], json!(["80/tcp"]));
    let rootfs = std::path::Path::new(image["rootfs"].as_str().unwrap());
    assert!(rootfs.is_absolute());
    let metadata = std::fs::metadata(rootfs).unwrap();
    assert_eq!(metadata.len(), 10 << 30);
    assert!(metadata.permissions().readonly());
    assert!(image["allocatedBytes"].as_u64().unwrap() < 64 << 20);

    // Again: nothing is fetched, nothing is converted.
    let again = voidrun.run(&["images", "pull", &source]).ok();
    assert!(!again.stderr.contains("layer "), "{again:?}");
    assert_eq!(voidrun.inspect("tool")["derivation"], image["derivation"]);
    assert!(voidrun.files("ingest").is_empty());
}

#[test]
fn every_form_of_a_layout_is_the_same_image() {
    let voidrun = Voidrun::new();
    let layout = Layout::of(&two_layers());
    let tar = layout.tar();
    voidrun.run(&["images", "pull", &voidrun.layout("dir", &layout)]).ok();
    let expected = voidrun.inspect("dir");
    for (name, bytes) in [("plain", tar.clone()), ("gz", gzip(&tar)), ("zst", zstd(&tar))] {
        let fresh = Voidrun::new();
        let file = fresh.file("image.oci.tar", &bytes);
        fresh.run(&["images", "pull", &format!("oci:{file}"), "--name", name]).ok();
        assert_eq!(fresh.inspect(name)["derivation"], expected["derivation"], "{name}");
        let fresh = Voidrun::new();
        fresh.run_with_stdin(&["images", "pull", "-", "--name", name], &bytes).ok();
        assert_eq!(fresh.inspect(name)["derivation"], expected["derivation"], "{name} by stdin");
        fresh.run(&["images", "import", "other", &file]).ok();
        fresh.run_with_stdin(&["images", "import", "third"], &bytes).ok();
        assert_eq!(fresh.names().len(), 3);
        assert!(fresh.files("ingest").is_empty(), "{:?}", fresh.files("ingest"));
        // Of the archive's files only the layers stay.
        assert_eq!(fresh.files("blobs/sha256").len(), 2);
    }
}

/// What `docker save` wrote before version 25, with the second layer as a link to the first's directory.
fn docker_archive(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = config(layers, "amd64");
    let manifest = json!([{
        "Config": "config.json", "RepoTags": tags, "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"],
    }]);
    let mut tar = tar::Builder::new(Vec::new());
    let mut file = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    file("a/layer.tar", &layers[0]);
    file("b/layer.tar", &layers[1]);
    file("config.json", &config);
    file("manifest.json", manifest.to_string().as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "c/layer.tar", "../a/layer.tar").unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn a_docker_archive_becomes_an_image() {
    let voidrun = Voidrun::new();
    let mut layers = two_layers();
    layers.push(layers[0].clone());
    let archive = docker_archive(&layers, &["tool:v1"]);
    let file = voidrun.file("saved.tar", &archive);
    voidrun.run(&["images", "pull", &format!("docker-archive:{file}")]).ok();
    voidrun.run_with_stdin(&["images", "import", "piped"], &gzip(&archive)).ok();
    let image = voidrun.inspect("saved");
    assert_eq!(image["layers"][2]["diffId"], digest(&layers[0]));
    assert_eq!(image["layers"][1]["mediaType"], "application/vnd.oci.image.layer.v1.tar");
    assert_eq!(voidrun.inspect("piped")["derivation"], image["derivation"]);

    for (tag, code) in [("v1", 0), ("tool:v1", 0), ("v2", 1)] {
        let ran = voidrun.run(&["images", "pull", &format!("docker-archive:{file}:{tag}"), "--name", "x"]);
        assert_eq!(ran.code, Some(code), "{tag}: {ran:?}");
    }
    voidrun.run(&["images", "pull", &format!("oci:{file}")]).fails(1, &["is not an OCI layout"]);
}

#[test]
fn links_in_circles_and_out_of_the_archive() {
    for (target, other) in [("../d/layer.tar", "../c/layer.tar"), ("../../../../etc/passwd", "/etc/passwd")] {
        let voidrun = Voidrun::new();
        let mut tar = tar::Builder::new(Vec::new());
        for (name, target) in [("c/layer.tar", target), ("d/layer.tar", other)] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, target).unwrap();
        }
        let config = config(&two_layers()[..1], "amd64");
        let manifest = json!([{ "Config": "config.json", "RepoTags": null, "Layers": ["c/layer.tar"] }]);
        for (name, bytes) in [("config.json", &config), ("manifest.json", &manifest.to_string().into_bytes())]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        let file = voidrun.file("x.tar", &tar.into_inner().unwrap());
        voidrun.run(&["images", "import", "x", &file]).fails(1, &["has no c/layer.tar"]);
    }
}

#[test]
fn tags_choose() {
    let voidrun = Voidrun::new();
    let mut layout = Layout::default();
    for (tag, text) in [("v1", b"one"), ("v2", b"two")] {
        let manifest = layout.image(&[layer(&[("x", text)])], "amd64");
        layout.manifests.push(tagged(manifest, tag));
    }
    let source = voidrun.layout("tool", &layout);
    voidrun.run(&["images", "pull", &source]).fails(1, &["several images", "v1, v2"]);
    voidrun.run(&["images", "pull", &format!("{source}:v3")]).fails(1, &["\"v3\"", "v1, v2"]);
    voidrun.run(&["images", "pull", &format!("{source}:v1")]).ok();
    voidrun.run(&["images", "pull", &format!("{source}:v2")]).ok();
    assert_eq!(voidrun.names(), ["tool:v1", "tool:v2"]);
    assert_ne!(voidrun.inspect("tool:v1")["digest"], voidrun.inspect("tool:v2")["digest"]);
    let file = voidrun.file("tool.tar", &layout.tar());
    voidrun.run(&["images", "import", "chosen", &file, "--tag", "v2"]).ok();
    assert_eq!(voidrun.inspect("chosen")["digest"], voidrun.inspect("tool:v2")["digest"]);

    // Two tags of one image are no choice.
    let manifest = layout.manifests[0].clone();
    layout.manifests = vec![tagged(manifest.clone(), "v1"), tagged(manifest, "latest")];
    voidrun.run(&["images", "pull", &voidrun.layout("same", &layout)]).ok();
}

#[test]
fn platforms_and_nested_indexes() {
    let voidrun = Voidrun::new();
    let mut layout = Layout::default();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let manifest = layout.image(&[layer(&[("arch", architecture.as_bytes())])], architecture);
        entries.push(for_platform(manifest, architecture));
    }
    let mut nested = layout.index(&entries);
    for _ in 0..3 {
        nested = layout.index(&[nested]);
    }
    layout.manifests = vec![nested.clone()];
    let source = voidrun.layout("multi", &layout);
    voidrun.run(&["images", "pull", &source, "--platform", "linux/amd64"]).ok();
    assert_eq!(voidrun.inspect("multi")["platform"], "linux/amd64");
    voidrun.run(&["images", "pull", &source, "--platform", "linux/arm64", "--name", "arm"]).ok();
    assert_eq!(voidrun.inspect("arm")["platform"], "linux/arm64");
    let ran = voidrun.run(&["images", "pull", &source, "--platform", "linux/s390x"]);
    ran.fails(1, &["linux/s390x", "linux/amd64, linux/arm64"]);

    layout.manifests = vec![layout.clone().index(&[nested.clone()])];
    let deeper = layout.index(&[nested]);
    layout.manifests = vec![deeper];
    voidrun.run(&["images", "pull", &voidrun.layout("deep", &layout)]).fails(1, &["nested more than 4"]);
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let voidrun = Voidrun::new();
    let mut layout = Layout::default();
    let manifest = layout.image(&two_layers(), "s390x");
    layout.manifests = vec![manifest];
    let source = voidrun.layout("other", &layout);
    voidrun.run(&["images", "pull", &source]).fails(1, &["linux/s390x", "--platform linux/s390x"]);
    voidrun.run(&["images", "pull", &source, "--platform", "linux/s390x"]).ok();
}

/// Nothing of a failed pull may be seen as an image or a blob.
#[track_caller]
fn nothing_is_there(voidrun: &Voidrun) {
    assert_eq!(voidrun.names(), Vec::<String>::new());
    for dir in ["refs", "images"] {
        assert_eq!(voidrun.files(dir), Vec::<String>::new(), "{dir}");
    }
}

type Damage = fn(&mut Vec<u8>);

#[test]
fn damaged_blobs_are_refused() {
    let layers = two_layers();
    let position_of = |layout: &Layout, bytes: &[u8]| {
        let name = format!("blobs/sha256/{}", &digest(bytes)[7..]);
        layout.files.iter().position(|(file, _)| *file == name).unwrap()
    };
    let damages: [(&str, Damage); 3] = [
        ("its digest is", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("bytes where its descriptor states", |bytes| bytes.push(0)),
        ("bytes where its descriptor states", |bytes| bytes.truncate(bytes.len() - 1)),
    ];
    for (message, damage) in damages {
        for blob in [gzip(&layers[1]), config(&layers, "amd64")] {
            let mut layout = Layout::of(&layers);
            let position = position_of(&layout, &blob);
            damage(&mut layout.files[position].1);
            let voidrun = Voidrun::new();
            let source = voidrun.layout("bad", &layout);
            voidrun.run(&["images", "pull", &source]).fails(1, &[message, &digest(&blob)]);
            nothing_is_there(&voidrun);
            let file = voidrun.file("bad.tar", &layout.tar());
            voidrun.run(&["images", "import", "bad", &file]).fails(1, &[message, &digest(&blob)]);
            nothing_is_there(&voidrun);
            let kept = voidrun.files("blobs/sha256");
            assert!(!kept.contains(&digest(&blob)[7..].to_owned()), "{kept:?}");
            assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
        }
    }
}

#[test]
fn digests_that_are_paths_are_refused() {
    for evil in ["sha256:../../../../etc/passwd", "sha256:..", "../x", "sha512:00", &"sha256:".repeat(9)] {
        let mut layout = Layout::default();
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": evil, "size": 1 },
            "layers": [],
        });
        let manifest = layout.document("application/vnd.oci.image.manifest.v1+json", &manifest);
        layout.manifests = vec![manifest];
        let voidrun = Voidrun::new();
        voidrun.run(&["images", "pull", &voidrun.layout("evil", &layout)]).fails(1, &["malformed"]);
        layout.manifests = vec![
            json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": evil, "size": 1 }),
        ];
        voidrun.run(&["images", "pull", &voidrun.layout("evil", &layout)]).fails(1, &["malformed"]);
        nothing_is_there(&voidrun);
    }
}

#[test]
fn a_wrong_diff_id_is_refused() {
    let mut layout = Layout::default();
    let right = two_layers();
    let wrong = vec![right[0].clone(), layer(&[("another", b"file")])];
    let manifest = layout.image(&right, "amd64");
    let config_of = |layers: &[Vec<u8>]| config(layers, "amd64");
    let (old, new) = (config_of(&right), config_of(&wrong));
    assert_eq!(old.len(), new.len());
    // The manifest with another configuration.
    let name = format!("blobs/sha256/{}", &manifest["digest"].as_str().unwrap()[7..]);
    let text = layout.files.iter().find(|(file, _)| *file == name).unwrap().1.clone();
    let text = String::from_utf8(text).unwrap().replace(&digest(&old), &digest(&new));
    layout.blob(new);
    let manifest =
        layout.document("application/vnd.oci.image.manifest.v1+json", &serde_json::from_str(&text).unwrap());
    layout.manifests = vec![manifest];
    let voidrun = Voidrun::new();
    voidrun
        .run(&["images", "pull", &voidrun.layout("wrong", &layout)])
        .fails(1, &["the image's configuration says"]);
    nothing_is_there(&voidrun);
    assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
}

#[test]
fn truncated_archives_are_refused() {
    let whole = Layout::of(&two_layers()).tar();
    // The last two blocks are the end of the archive; what lies before is needed.
    let end = whole.len() - 1024;
    let mut lengths: Vec<usize> = (0..end).step_by(509).collect();
    lengths.push(end - 513);
    for form in [|bytes: &[u8]| bytes.to_vec(), gzip] {
        let voidrun = Voidrun::new();
        for &length in lengths.iter().step_by(3) {
            let ran = voidrun.run_with_stdin(&["images", "import", "cut"], &form(&whole[..length]));
            ran.fails(1, &["standard input"]);
        }
        nothing_is_there(&voidrun);
        assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
        assert_eq!(voidrun.files("blobs/sha256"), Vec::<String>::new());
    }
    let voidrun = Voidrun::new();
    let packed = gzip(&whole);
    voidrun
        .run_with_stdin(&["images", "import", "cut"], &packed[..packed.len() / 2])
        .fails(1, &["standard input"]);
}

#[test]
fn not_an_image() {
    let voidrun = Voidrun::new();
    let empty = voidrun.file("empty", b"");
    let noise = voidrun.file("noise", &noise(10_000, 7));
    let other = voidrun.file("other.tar", &tar(&[("readme", b"hello".to_vec())]));
    voidrun.run(&["images", "import", "x", &empty]).fails(1, &["is not an OCI layout", "docker save"]);
    voidrun.run(&["images", "import", "x", &noise]).fails(1, &["damaged", "no tar header"]);
    voidrun.run(&["images", "import", "x", &other]).fails(1, &["is not an OCI layout", "docker save"]);
    voidrun
        .run(&["images", "import", "x", "/nonexistent/x.tar"])
        .fails(1, &["/nonexistent/x.tar", "No such file"]);
    voidrun.run(&["images", "pull", "oci:/nonexistent"]).fails(1, &["/nonexistent"]);
    let dir = voidrun.path("");
    voidrun
        .run(&["images", "pull", &format!("oci:{}", dir.display()), "--name", "x"])
        .fails(1, &["oci-layout"]);
}

#[test]
fn more_entries_than_any_image_has() {
    let mut bytes = Vec::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_cksum();
    for _ in 0..100_001 {
        bytes.extend_from_slice(header.as_bytes());
    }
    let voidrun = Voidrun::new();
    voidrun.run_with_stdin(&["images", "import", "many"], &bytes).fails(1, &["more than 100000 entries"]);
}

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

#[test]
fn what_an_image_says_is_not_obeyed_by_the_terminal() {
    let voidrun = Voidrun::new();
    let mut layout = Layout::default();
    for i in 0..30 {
        let manifest = layout.image(&[layer(&[("x", &[i])])], "amd64");
        layout.manifests.push(tagged(manifest, &format!("v{i}\u{1b}]0;title\u{7}\u{9b}2J")));
    }
    let ran = voidrun.run(&["images", "pull", &voidrun.layout("tool", &layout)]);
    assert!(!ran.stderr.contains(|c: char| c.is_control() && c != '\n'), "{ran:?}");
    ran.fails(1, &["several images", "and 10 more"]);
    let mut layout = Layout::default();
    let manifest = layout.image(&two_layers(), "\u{1b}[2J");
    layout.manifests.push(manifest);
    let ran = voidrun.run(&["images", "pull", &voidrun.layout("other", &layout)]);
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
    ran.fails(1, &["for linux/\u{fffd}[2J"]);
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

#[test]
fn names_never_fall_through() {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("python", &Layout::of(&two_layers()));
    voidrun.configure("[aliases]\npy = 'python'\ncode = 'python'\n");
    voidrun.run(&["images", "pull", &source]).ok();
    for name in ["python", "python:latest", "py", "code"] {
        assert_eq!(voidrun.inspect(name)["reference"], "python", "{name}");
    }
    // Without the rootfs the name is still local: an error, not docker.io/library/python.
    let rootfs = voidrun.inspect("python")["rootfs"].as_str().unwrap().to_owned();
    std::fs::remove_file(&rootfs).unwrap();
    voidrun.run(&["images", "inspect", "python"]).fails(1, &["root file system of python is missing"]);
    voidrun.run(&["images", "pull", &source]).ok();
    // With a damaged reference as well.
    let reference = voidrun.store().join("refs").join(&voidrun.files("refs")[0]);
    std::fs::write(&reference, b"{").unwrap();
    voidrun.run(&["images", "inspect", "python"]).fails(1, &["is damaged"]);
    voidrun.run(&["images", "gc", "--grace", "0s"]).ok();
    voidrun.run(&["images", "inspect", "python"]).fails(1, &["is damaged"]);
    let listing = voidrun.run(&["images", "ls", "--json"]).json();
    assert_eq!(listing["damaged"].as_array().unwrap().len(), 1, "{listing}");
    voidrun.run(&["images", "pull", &source]).ok();
    assert_eq!(voidrun.names(), ["python"]);
}

#[test]
fn the_default_image() {
    let voidrun = Voidrun::new();
    for arguments in
        [&["images", "inspect"][..], &["images", "pull", "code"], &["images", "inspect", "code:latest"]]
    {
        voidrun.run(arguments).fails(1, &["./scripts/images code", "import code code.oci.tar.zst"]);
    }
    voidrun.run(&["images", "pull", &voidrun.layout("tool", &Layout::of(&two_layers()))]).ok();
    voidrun.configure("default_image = 'tool'\n");
    assert_eq!(voidrun.run(&["images", "inspect"]).json()["reference"], "tool");
    let ran = voidrun.command(&["images", "inspect"]).env("VOIDRUN_DEFAULT_IMAGE", "code").output().unwrap();
    Ran::from(ran).fails(1, &["./scripts/images code"]);
}

#[test]
fn usage_errors() {
    let voidrun = Voidrun::new();
    for arguments in [
        &["images", "pull", "UPPER"][..],
        &["images", "import", "../x", "/dev/null"],
        &["images", "pull", "x", "--size", "much"],
        &["images", "pull", "x", "--size", "1MiB"],
        &["images", "pull", "x", "--size", "16TiB"],
        &["images", "import", "ghcr.io/a/b", "/dev/null"],
        &["images", "import", "oci:v1", "/dev/null"],
        &["images", "pull", "x", "--platform", "linux"],
        &["images", "rm"],
        &["images", "gc", "--grace", "soon"],
        &["login", "registry.example.com"],
        &["nonsense"],
    ] {
        assert_eq!(voidrun.run(arguments).code, Some(2), "{arguments:?}");
    }
    voidrun.run_with_stdin(&["images", "pull", "-"], b"").fails(1, &["--name"]);
    let file = voidrun.file("a.tar", b"");
    voidrun.run(&["images", "pull", &file]).fails(2, &[&format!("did you mean oci:{file}, docker-archive:")]);
    let mut command = voidrun.command(&["images", "pull", "a.tar"]);
    Ran::from(command.current_dir(voidrun.path("")).output().unwrap()).fails(2, &["did you mean oci:a.tar"]);
}

#[test]
fn errors_as_json() {
    let voidrun = Voidrun::new();
    let ran = voidrun.run(&["images", "pull", "oci:/nonexistent", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"], "cannot pull /nonexistent");
    assert!(error["causes"][0].as_str().unwrap().contains("/nonexistent"));
    assert_eq!(error["code"], "io");
    assert_eq!(ran.stdout, "");
    let noise = voidrun.file("noise", &noise(10_000, 7));
    for (arguments, exit, code) in [
        (&["images", "inspect", "none"][..], 1, "notFound"),
        (&["images", "import", "x", &noise], 1, "invalidImage"),
        (&["images", "rm"], 2, "usage"),
        (&["images", "pull", "x", "--size", "1MiB"], 2, "usage"),
        (&["nonsense"], 2, "usage"),
        (&[], 2, "usage"),
    ] {
        let ran = voidrun.run(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, Some(exit), "{ran:?}");
        let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["code"], code, "{error}");
    }
    voidrun.run(&["--version", "--json"]).ok();
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

/// `voidrun ... 2>/dev/full`, and a reader of standard error that is gone.
#[test]
fn nobody_has_to_read_standard_error() {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&two_layers()));
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for (stderr, name) in [(std::process::Stdio::from(gone), "a"), (full.into(), "b")] {
        let mut command = voidrun.command(&["images", "pull", &source, "--name", name]);
        Ran::from(command.stderr(stderr).output().unwrap()).ok();
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = voidrun.command(&["images", "inspect", "none"]).stderr(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
}

#[test]
fn configuration_is_shown_with_its_origin() {
    let voidrun = Voidrun::new();
    voidrun.configure("[gc]\nbudget = '5GiB'\n");
    let shown = voidrun.run(&["config", "--json"]).json();
    let setting = |key: &str| {
        let settings = shown["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["key"] == key).unwrap().clone()
    };
    assert_eq!(setting("gc.budget")["value"], "5GiB");
    assert!(setting("gc.budget")["origin"].as_str().unwrap().ends_with("config.toml"));
    assert_eq!(setting("home")["origin"], "environment VOIDRUN_HOME");
    assert_eq!(
        setting("default_image"),
        json!({ "key": "default_image", "value": "code", "origin": "default" })
    );
    voidrun.configure("defaultimage = 'x'\n");
    voidrun.run(&["images", "ls"]).fails(1, &["config.toml:1:", "did you mean `default_image`?"]);
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
