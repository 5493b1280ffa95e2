//! Sources on this machine: layouts, archives, standard input; tags and platforms.

use serde_json::json;

use crate::support::{Layout, Voidrun, config, digest, for_platform, gzip, layer, tagged, zstd};
use crate::two_layers;

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
