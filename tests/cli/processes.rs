//! Several processes, one store; interruption.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;

use crate::support::{Layout, Ran, Voidrun, layer, noise};
use rootfs_builder::store::Store;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn one_converts_and_the_others_wait() {
    let layout = Layout::of(&[layer(&[("a", b"a")]), layer(&[("b", b"b")])]);
    // The derivation depends on the image alone, so another store tells it.
    let elsewhere = Voidrun::new();
    elsewhere.run(&["images", "pull", &elsewhere.layout("tool", &layout)]).ok();
    let derivation = elsewhere.inspect("tool")["derivation"].as_str().unwrap().parse().unwrap();

    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &layout);
    // This process is the one that makes the image, until it gives up.
    let pending = Store::open(&voidrun.store()).unwrap().begin(derivation, || {}).unwrap();
    let mut waiting = Vec::new();
    for name in ["one", "two", "three"] {
        let mut child = voidrun.spawn(&["images", "pull", &source, "--name", name]);
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("waiting for another process: image") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "{name} does not wait");
        }
        waiting.push((child, lines));
    }
    assert_eq!(voidrun.files("blobs/sha256"), Vec::<String>::new());
    drop(pending);
    let mut converted = 0;
    let mut fetched = 0;
    for (mut child, mut lines) in waiting {
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        assert!(child.wait().unwrap().success(), "{rest}");
        converted += rest.matches("converted:").count();
        fetched += rest.matches(": done").count();
    }
    assert_eq!((converted, fetched), (1, 2));
    assert_eq!(voidrun.names(), ["one", "three", "two"]);
}

#[test]
fn many_at_once() {
    let voidrun = Voidrun::new();
    let shared = layer(&[("shared", &noise(3 << 20, 1))]);
    let sources: Vec<String> = (0..4)
        .map(|i| {
            let own = layer(&[("own", &[i])]);
            voidrun.layout(&format!("image{i}"), &Layout::of(&[shared.clone(), own]))
        })
        .collect();
    let mut children = Vec::new();
    for round in 0..3 {
        for source in &sources {
            let name = format!("{}-{round}", source.rsplit('/').next().unwrap());
            children.push(voidrun.spawn(&["images", "pull", source, "--name", &name]));
        }
        children.push(voidrun.spawn(&["images", "gc", "--grace", "0s", "--budget", "0"]));
    }
    let mut done = String::new();
    for child in children {
        done.push_str(&Ran::from(child.wait_with_output().unwrap()).ok().stderr);
    }
    assert_eq!(voidrun.names().len(), 12);
    // Each image is converted once, gc or not: it never takes what is being made or has a name.
    assert_eq!(done.matches("converted:").count(), 4, "{done}");
    voidrun.run(&["images", "gc", "--grace", "0s"]).ok();
    assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
    assert_eq!(voidrun.files("images").len(), 8);
}

#[test]
fn interrupted_and_continued() {
    let voidrun = Voidrun::new();
    let tar = Layout::of(&[layer(&[("big", &noise(4 << 20, 2))])]).tar();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut child = voidrun.command(&["images", "import", "tool"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // More than the pipe holds: when this returns, the program is reading.
        stdin.write_all(&tar[..3 << 20]).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let ran = Ran::from(child.wait_with_output().unwrap());
        drop(stdin);
        ran.fails(code, &["interrupted", "the same command starts over"]);
    }
    assert_eq!(voidrun.names(), Vec::<String>::new());
    voidrun.run_with_stdin(&["images", "import", "tool"], &tar).ok();
    // What was left is gone without gc.
    assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
    assert_eq!(voidrun.names(), ["tool"]);
}
