//! Machines whose host fails them: their process is killed while they write, and another machine then finds their disk; or
//! the host's disk is full.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use protocol::FrameType;

use crate::guest::{Guest, python, shell};
use crate::guests::SmallDisk;
use crate::{Store, count};

/// Writers in the guest.
const WRITERS: usize = 3;
/// Files of each, which it replaces one after the other.
const FILES: usize = 8;
const GRANULE: usize = 4096;

/// Each writer replaces files (a new one, fsync, rename, fsync of the directory) and lengthens another (fsync), and then
/// says so; [`content`] is what it writes.
const WRITE: &str = r#"
import os, threading
def write(writer):
    directory = f"/writes/ROUND/{writer}"
    os.makedirs(directory)
    os.sync()
    entries = os.open(directory, os.O_RDONLY)
    log = os.open(directory + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    while True:
        number += 1
        name = f"{directory}/{number % 8}"
        new = os.open(name + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(new, f"{writer} {number}\n".encode() * (1 + number * 7919 % 3000))
        os.fsync(new)
        os.close(new)
        os.rename(name + ".new", name)
        os.fsync(entries)
        os.write(log, f"{number}\n".encode())
        os.fsync(log)
        os.write(1, f"{writer} {number}\n".encode())
for writer in range(3):
    threading.Thread(target=write, args=(writer,)).start()
"#;

fn content(writer: usize, number: usize) -> Vec<u8> {
    format!("{writer} {number}\n").repeat(1 + number * 7919 % 3000).into_bytes()
}

/// By round and writer: the number of the last file that was said to be there.
type Said = Vec<[usize; WRITERS]>;

#[test]
fn what_was_synced_survives_a_kill() {
    let store = Store::new();
    let base = store.rootfs("code");
    let diff = store.path().join("diff");
    let kills = count("VOIDRUN_MACHINE_KILLS", 2);
    let mut random = fastrand::Rng::new();
    let mut said = Said::new();
    for round in 0..kills {
        let guest = Guest::boot(&base, &diff, 512);
        recovered(&guest, round > 0);
        finds(&guest, &said);
        said.push(write_and_die(guest, round, &mut random));

        // The journal's replay by somebody else than the next guest. Orphans are what a replay leaves to do.
        let merged = merge(&base, &diff, store.path());
        let (code, text) = e2fsck("-p", &merged);
        assert!(code < 2, "round {round}: {text}");
        is_whole(&merged);
    }
    let guest = Guest::boot(&base, &diff, 512);
    recovered(&guest, true);
    finds(&guest, &said);
    guest.power_off();
    is_whole(&merge(&base, &diff, store.path()));
    println!("{kills} kills; files that were said to be there: {said:?}");
}

#[test]
fn a_full_host_is_an_io_error_and_told() {
    let store = Store::new();
    let small = store.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let _mounted = SmallDisk::mount(&small, 32);
    let guest = Guest::boot(&store.rootfs("code"), &small.join("diff"), 512);
    let outcome = guest.run(shell("dd if=/dev/zero of=/root/big bs=1M count=128 conv=fsync"));
    let said = String::from_utf8(outcome.stderr).unwrap();
    // The second where the guest's file system has made itself read-only before.
    let told = ["Input/output error", "Read-only file system"].iter().any(|why| said.contains(why));
    assert!(outcome.exit.exit_code == Some(1) && told, "{said}");
    let log = guest.log();
    assert!(log.contains("writing the disk failed") && log.contains("No space left on device"), "{log}");
    assert_eq!(log.matches("writing").count(), 1, "{log}");
    // The machine itself goes on.
    assert_eq!(guest.shell("echo fine"), b"fine\n");
}

/// Lets the guest write, and kills its machine at some moment.
fn write_and_die(guest: Guest, round: usize, random: &mut fastrand::Rng) -> [usize; WRITERS] {
    let (mut stream, _) = guest.start(python(&WRITE.replace("ROUND", &round.to_string())));
    let enough = random.usize(10..200);
    let mut text = String::new();
    while text.lines().count() < enough {
        text.push_str(&stdout(stream.next().expect("more output")));
    }
    std::thread::sleep(Duration::from_micros(random.u64(0..30_000)));
    guest.kill();
    // Said, and not heard before.
    while let Some(frame) = stream.next() {
        text.push_str(&stdout(frame));
    }
    let mut last = [0; WRITERS];
    // What is not a whole line was not said.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let (writer, number) = line.split_once(' ').unwrap();
        last[writer.parse::<usize>().unwrap()] = number.parse().unwrap();
    }
    last
}

fn stdout((kind, payload): (FrameType, Vec<u8>)) -> String {
    let text = String::from_utf8(payload).unwrap();
    assert_eq!(kind, FrameType::Stdout, "{text}");
    text
}

/// Whether the kernel has replayed the journal, and found nothing wrong with the disk.
#[track_caller]
fn recovered(guest: &Guest, expected: bool) {
    let log = String::from_utf8(guest.shell("dmesg | grep EXT4-fs")).unwrap();
    assert_eq!(log.contains("recovery complete"), expected, "{log}");
    assert!(!log.contains("error") && !log.contains("warning"), "{log}");
}

/// What was said to be there is.
fn finds(guest: &Guest, said: &Said) {
    if said.is_empty() {
        return;
    }
    let tar = guest.shell("tar c -C /writes .");
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(path, bytes);
    }
    for (round, last) in said.iter().enumerate() {
        for (writer, &last) in last.iter().enumerate() {
            let file = |name: &str| {
                let path = format!("./{round}/{writer}/{name}");
                files.get(&path).unwrap_or_else(|| panic!("{path} is missing: {said:?}"))
            };
            for number in (1..=last).rev().take(FILES) {
                let bytes = file(&(number % FILES).to_string());
                // A later one may have come in its place.
                let line = bytes.split(|&byte| byte == b'\n').next().unwrap();
                let found = String::from_utf8_lossy(line);
                let found = found.split_once(' ').and_then(|(_, number)| number.parse::<usize>().ok());
                let found = found.unwrap_or_else(|| panic!("{round}/{writer}, file {number}: {line:?}"));
                assert!(
                    found >= number && found % FILES == number % FILES,
                    "{found} is in the place of {number}"
                );
                assert!(
                    *bytes == content(writer, found),
                    "{round}/{writer}, file {found}: {} bytes",
                    bytes.len()
                );
            }
            if last > 0 {
                let lines: String = (1..=last).map(|number| format!("{number}\n")).collect();
                assert!(file("log").starts_with(lines.as_bytes()), "{round}/{writer}: the log to {last}");
            }
        }
    }
}

/// The file system of `base` with what is in `diff`, as one file: of the base its metadata alone, which is what e2fsck
/// reads. By the description of the diff's format, and not by the code of the device.
fn merge(base: &Path, diff: &Path, directory: &Path) -> PathBuf {
    let merged = directory.join("merged");
    let _ = std::fs::remove_file(&merged);
    let done = Command::new("/sbin/e2image").arg("-r").args([base, &merged]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let granules = std::fs::metadata(base).unwrap().len() as usize / GRANULE;
    let diff = File::open(diff).unwrap();
    let mut bitmap = vec![0; granules.div_ceil(8)];
    diff.read_exact_at(&mut bitmap, GRANULE as u64).unwrap();
    let data = GRANULE + bitmap.len().next_multiple_of(GRANULE);
    let file = File::options().write(true).open(&merged).unwrap();
    file.set_len((granules * GRANULE) as u64).unwrap();
    let mut granule = [0; GRANULE];
    for number in (0..granules).filter(|number| bitmap[number / 8] & 1 << (number % 8) != 0) {
        diff.read_exact_at(&mut granule, (data + number * GRANULE) as u64).unwrap();
        file.write_all_at(&granule, (number * GRANULE) as u64).unwrap();
    }
    merged
}

fn e2fsck(option: &str, disk: &Path) -> (i32, String) {
    let checked = Command::new("/sbin/e2fsck").arg(option).arg(disk).env("LC_ALL", "C").output().unwrap();
    let text = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    (checked.status.code().unwrap(), text)
}

/// There is nothing to recover, and nothing wrong.
#[track_caller]
fn is_whole(disk: &Path) {
    let (code, text) = e2fsck("-fn", disk);
    assert!(code == 0 && !text.contains("? no") && !text.contains("recovery"), "{text}");
}
