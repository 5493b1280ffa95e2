//! A process that is killed while it writes: all that it has reported is there.
//!
//! Files in memory: what counts is what the kernel was told, and no time goes by in fdatasync.

use std::fs::File;
use std::io::{PipeReader, Read as _, Write as _, pipe};
use std::ops::Range;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::Disk;
use super::disk_tests::{Op, base_bytes, in_memory, read};

/// So many granules that most of what is written is written for the first time.
const SIZE: usize = 1024 * 4096;
const ROUNDS: u64 = 100;

#[test]
fn what_was_reported_survives_a_kill() {
    let base = in_memory(&base_bytes(SIZE));
    let mut choice = fastrand::Rng::with_seed(1);
    for round in 0..ROUNDS {
        let diff = in_memory(&[]);
        let (mut reports, writer) = start_writer(&base, &diff, round);
        let mut reported = vec![0; choice.usize(0..50)];
        reports.read_exact(&mut reported).expect("the writer failed");
        kill_process(writer, Signal::KILL).unwrap();
        waitpid(Some(writer), WaitOptions::empty()).unwrap();
        reports.read_to_end(&mut reported).unwrap();

        let mut model = base_bytes(SIZE);
        let mut ops = ops(round);
        for op in ops.by_ref().take(reported.len()) {
            op.apply_to(&mut model);
        }
        // The one that it was at may be done, or not, or half.
        let last = ops.next().unwrap();
        let mut after = model.clone();
        last.apply_to(&mut after);
        let disk = Disk::open(base.try_clone().unwrap(), None, diff).unwrap();
        let found = read(&disk, 0, SIZE);
        let wrong = last.range().find(|&at| found[at] != model[at] && found[at] != after[at]);
        let what = format!("round {round}: {} reported, then {last:?}", reported.len());
        assert_eq!(wrong, None, "{what}");
        let Range { start, end } = last.range();
        assert!(found[..start] == model[..start] && found[end..] == model[end..], "{what}");
    }
}

/// What the writer of `round` does, without an end.
fn ops(round: u64) -> impl Iterator<Item = Op> {
    let mut choice = fastrand::Rng::with_seed(round);
    std::iter::repeat_with(move || {
        let unit = choice.choice([512, 4096, 4096, 4096]).unwrap_or(512);
        let offset = choice.usize(0..SIZE / unit) * unit;
        let len = (choice.usize(1..16) * unit).min(SIZE - offset);
        match choice.u8(0..10) {
            0 => Op::Flush,
            1 | 2 => Op::Zero { offset, len },
            _ => Op::Write { offset, len, seed: choice.u8(..) },
        }
    })
}

/// A process that opens the disk, which makes the diff, and writes a byte to the pipe after each
/// operation that is complete.
fn start_writer(base: &File, diff: &File, round: u64) -> (PipeReader, Pid) {
    let (reader, mut writer) = pipe().unwrap();
    let (base, diff) = (base.try_clone().unwrap(), diff.try_clone().unwrap());
    // SAFETY: the child has this thread alone. It takes no lock that another thread may have held, but that of malloc, which
    // the C library hands over; and it leaves by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let write = move || -> Option<()> {
                let mut disk = Disk::open(base, None, diff).ok()?;
                for op in ops(round) {
                    op.apply(&mut disk).ok()?;
                    writer.write_all(&[0]).ok()?;
                }
                None
            };
            write();
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) }
        }
        child => (reader, Pid::from_raw(child).expect("fork failed")),
    }
}
