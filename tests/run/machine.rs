//! The machine that a command finds itself in.

use crate::{Ran, Store, scratch_image};

#[test]
fn processors_and_memory() {
    let store = Store::new();
    for cpus in ["2", "4"] {
        store.run(&["--cpus", cpus, "debian", "nproc"]).prints(&format!("{cpus}\n"));
    }
    for (memory, mib) in [("256MiB", 256), ("1g", 1024)] {
        let line = store.run(&["--memory", memory, "debian", "grep", "MemTotal", "/proc/meminfo"]).text();
        let seen: u64 = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10;
        // What the kernel keeps for itself is missing.
        assert!((mib * 3 / 4..=mib).contains(&seen), "{memory}: {seen} MiB");
    }
}

#[test]
fn the_disk() {
    let store = Store::new();
    let inspected =
        Ran::from(store.command(&["images", "inspect", "debian", "--json"]).output().unwrap()).text();
    let image: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let size = image["sizeBytes"].as_u64().unwrap();
    let seen = store.run(&["debian", "df", "-B1", "--output=source,fstype,size", "/"]).text();
    let words: Vec<&str> = seen.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(words[..2], ["/dev/vda", "ext4"], "{seen}");
    // Without the journal and the tables of the file system.
    let seen: u64 = words[2].parse().unwrap();
    assert!(seen < size && seen > size / 10 * 9, "{seen} of {size}");

    // What one run writes is not there in the next.
    let write = "echo kept > /root/file && sync && cat /root/file";
    store.run(&["debian", "sh", "-c", write]).prints("kept\n");
    store.run(&["debian", "test", "-e", "/root/file"]).ends(1, &[]);
}

#[test]
fn an_image_of_one_program() {
    let store = Store::empty();
    let image = scratch_image(store.path());
    Ran::from(store.command(&["images", "pull", &image, "--name", "scratch"]).output().unwrap()).ends(0, &[]);
    store.run(&["scratch"]).prints("from scratch\n");
    store.run(&["scratch", "sh", "-c", "echo $A; pwd"]).prints("image\n/\n");
    store.run(&["--entrypoint", "/busybox", "-w", "/proc", "scratch", "cat", "1/comm"]).ends(0, &[]);
}
