//! SIGKILL at chosen points of every phase; afterwards the store is consistent and the next pull succeeds.
//!
//! The points are not left to luck. Where the program reads a pipe, the test decides how much it has got; elsewhere it waits
//! for a line of progress or for a state of the store, and kills then. How many kills: VOIDRUN_KILLS, 5 unless told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::{Layout, Voidrun, layer, noise};

type Phase = (&'static str, fn(usize) -> bool);

/// One after the other, again and again, each with a point that moves on from round to round.
/// Each says whether the program was still running when it was killed.
const PHASES: [Phase; 5] = [
    ("stream", kill_stream),
    ("copy", kill_copy),
    ("conversion", kill_conversion),
    ("commit", kill_commit),
    ("gc", kill_gc),
];

#[test]
fn killed_at_any_point_the_next_pull_succeeds() {
    let kills = std::env::var("VOIDRUN_KILLS").ok().map_or(5, |count| count.parse().unwrap());
    let mut hits = [0; PHASES.len()];
    for kill in 0..kills {
        let phase = kill % PHASES.len();
        hits[phase] += usize::from(PHASES[phase].1(kill / PHASES.len()));
    }
    for ((phase, _), hits) in PHASES.iter().zip(hits) {
        println!("{phase}: {hits} of {} kills met the program at work", kills / PHASES.len());
    }
    assert!(hits.iter().sum::<usize>() * 2 > kills, "most kills came too late: {hits:?}");
}

fn layers() -> Vec<Vec<u8>> {
    (0..3).map(|i| layer(&[(&format!("file{i}"), &noise(2 << 20, i + 1))])).collect()
}

/// In the middle of an archive on standard input: after a part of it that grows with the rounds.
fn kill_stream(round: usize) -> bool {
    let voidrun = Voidrun::new();
    let tar = Layout::of(&layers()).tar();
    let mut child = voidrun.command(&["images", "import", "tool"]).stdin(Stdio::piped()).spawn().unwrap();
    // What the pipe does not hold has been read when the write returns.
    let part = tar.len() * (round % 10 + 1) / 11;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&tar[..part]).unwrap();
    let killed = kill(child);
    drop(stdin);
    assert_eq!(voidrun.names(), Vec::<String>::new());
    voidrun.run_with_stdin(&["images", "import", "tool"], &tar).ok();
    check(&voidrun, &["tool"]);
    killed
}

/// While layers are copied: at the n-th line of progress.
fn kill_copy(round: usize) -> bool {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&layers()));
    let killed =
        kill_at_line(voidrun.spawn(&["images", "pull", &source]), |_, number| number == 1 + round % 10);
    check_and_pull(&voidrun, &source);
    killed
}

/// At the start of the n-th layer's conversion.
fn kill_conversion(round: usize) -> bool {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&layers()));
    let wanted = format!("converting layer {} of 3", round % 3 + 1);
    let killed =
        kill_at_line(voidrun.spawn(&["images", "pull", &source]), |line, _| line.starts_with(&wanted));
    check_and_pull(&voidrun, &source);
    killed
}

/// Between the steps that make an image: file system begun, file system in place, record in place, reference in place.
fn kill_commit(round: usize) -> bool {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&layers()));
    voidrun.run(&["images", "ls"]).ok();
    let (dir, suffix) =
        [("ingest", ".ext4.part"), ("images", ".ext4"), ("images", ".json"), ("refs", ".json")][round % 4];
    let dir = voidrun.store().join(dir);
    let mut child = voidrun.spawn(&["images", "pull", &source]);
    while !has_file(&dir, suffix) && child.try_wait().unwrap().is_none() {
        std::hint::spin_loop();
    }
    let killed = kill(child);
    check_and_pull(&voidrun, &source);
    killed
}

/// At the n-th thing that gc removes.
fn kill_gc(round: usize) -> bool {
    let voidrun = Voidrun::new();
    let shared = layers();
    let keep = voidrun.layout("keep", &Layout::of(&shared));
    voidrun.run(&["images", "pull", &keep]).ok();
    // Images that have lost their names, with layers of their own.
    for i in 0..4 {
        let own = layer(&[("own", &noise(1 << 16, 100 + i))]);
        let source = voidrun.layout(&format!("lost{i}"), &Layout::of(&[shared[0].clone(), own]));
        voidrun.run(&["images", "pull", &source, "--name", "lost"]).ok();
    }
    let gc = voidrun.spawn(&["images", "gc", "--grace", "0s", "--budget", "0"]);
    let killed = kill_at_line(gc, |_, number| number == 1 + round % 9);
    assert_eq!(voidrun.names(), ["keep", "lost"]);
    voidrun.run(&["images", "pull", &keep, "--size", "1GiB"]).ok();
    check(&voidrun, &["keep", "lost"]);
    killed
}

/// Kills at the first line of progress for which `at` holds (numbers start at 1), or waits for the end when there is none.
fn kill_at_line(mut child: Child, at: impl Fn(&str, usize) -> bool) -> bool {
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for (line, number) in lines.map_while(Result::ok).zip(1..) {
        assert!(!line.starts_with("error"), "{line}");
        if at(&line, number) {
            return kill(child);
        }
    }
    child.wait().unwrap();
    false
}

/// Was it still running?
fn kill(mut child: Child) -> bool {
    child.kill().unwrap();
    child.wait().unwrap().signal() == Some(9)
}

fn check_and_pull(voidrun: &Voidrun, source: &str) {
    // Whatever is visible now is whole.
    for name in voidrun.names() {
        is_clean(&voidrun.inspect(&name));
    }
    voidrun.run(&["images", "pull", source]).ok();
    check(voidrun, &["tool"]);
}

/// The images are there and clean, and after gc nothing else is.
fn check(voidrun: &Voidrun, names: &[&str]) {
    assert_eq!(voidrun.names(), names);
    voidrun.run(&["images", "gc", "--grace", "0s"]).ok();
    assert_eq!(voidrun.names(), names);
    for name in names {
        is_clean(&voidrun.inspect(name));
    }
    assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
    assert_eq!(voidrun.files("images").len(), 2 * names.len());
    for blob in voidrun.files("blobs/sha256") {
        let bytes = std::fs::read(voidrun.store().join("blobs/sha256").join(&blob)).unwrap();
        assert_eq!(support::digest(&bytes), format!("sha256:{blob}"));
    }
}

fn is_clean(image: &serde_json::Value) {
    let rootfs = image["rootfs"].as_str().unwrap();
    let checked = Command::new("e2fsck").args(["-fn", rootfs]).env("LC_ALL", "C").output();
    let checked = checked.expect("e2fsck (package e2fsprogs) is the judge");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

fn has_file(dir: &Path, suffix: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(suffix))
}
