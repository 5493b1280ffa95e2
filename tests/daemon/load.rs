//! Many commands at once, many one after the other, and much output with a client that does not read.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::guests::{count, descriptors};
use crate::{Daemon, until};

const MIB: usize = 1 << 20;
/// What the daemon may need for all of this at once beside what it has, in KiB: far less than one of the streams is long.
const GROWTH: usize = 32 << 10;

/// The daemon's own memory in KiB.
fn memory(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

fn threads(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap().count()
}

/// A stream of numbers, a line each, so many bytes in all: what is lost, twice there or out of order changes its hash.
fn numbers(daemon: &Daemon, sandbox: &str, bytes: usize) -> UnixStream {
    let body = json!({ "command": format!("seq 10000000 99999999 | head -c {bytes}"), "timeout": 0 });
    let path = format!("/v1/sandboxes/{sandbox}/exec-stream");
    daemon.send("POST", &path, "Accept: application/x-ndjson\r\n", &body)
}

fn hash_of_numbers(bytes: usize) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut text = Vec::with_capacity(MIB + 9);
    let (mut number, mut left) = (10_000_000, bytes);
    while left > 0 {
        text.clear();
        while text.len() < MIB {
            text.extend_from_slice(format!("{number}\n").as_bytes());
            number += 1;
        }
        let piece = &text[..text.len().min(left)];
        hash.update(piece);
        left -= piece.len();
    }
    hash.finalize().into()
}

/// Reads such a stream to its end: the hash of what came.
fn received(stream: UnixStream) -> [u8; 32] {
    let mut stream = BufReader::with_capacity(MIB, stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    let (mut hash, mut bytes) = (Sha256::new(), Vec::new());
    loop {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "it has broken off");
        let piece = line.strip_prefix(r#"{"stream":"stdout","data":""#);
        let Some(data) = piece.and_then(|rest| rest.strip_suffix("\"}\n")) else { break };
        bytes.clear();
        BASE64_STANDARD.decode_vec(data, &mut bytes).unwrap();
        hash.update(&bytes);
    }
    let end: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&end["stream"], &end["exitCode"]), (&json!("exit"), &json!(0)), "{end}");
    hash.finalize().into()
}

/// Sets it, by a panic as well: a thread that waits for it would hold the test up.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn commands_and_streams() {
    let full = count("VOIDRUN_LOAD", 0) > 0;
    let (sandboxes, at_once, in_turn) = if full { (4, 200, 1000) } else { (2, 40, 50) };
    let (streams, bytes) = if full { (10, 100 * MIB) } else { (3, 8 * MIB) };
    let daemon = Daemon::new();
    let names: Vec<String> = (0..sandboxes).map(|number| format!("s{number}")).collect();
    for name in &names {
        daemon.cli(&["create", "--name", name, "--memory", "512m", "debian"]).ends(0, &[]);
    }
    let square = |number: usize| {
        let body = json!({ "command": format!("echo $(({number} * {number}))"), "timeout": 0 });
        let path = format!("/v1/sandboxes/{}/exec", names[number % sandboxes]);
        let ran = daemon.data("POST", &path, body);
        assert_eq!(ran["stdout"], format!("{}\n", number * number), "{ran}");
    };
    (0..sandboxes).for_each(square);
    // The least of some looks: a connection that is just being closed is not what the daemon has.
    let looks = (0..20).map(|_| {
        thread::sleep(Duration::from_millis(20));
        descriptors(daemon.process.id()).len()
    });
    let (open, tasks, before) = (looks.min().unwrap(), threads(&daemon), memory(&daemon));

    let over = AtomicBool::new(false);
    let peak = thread::scope(|scope| {
        let end = End(&over);
        let peak = scope.spawn(|| {
            let mut peak = 0;
            while !over.load(Ordering::Relaxed) {
                peak = peak.max(memory(&daemon));
                thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let clock = Instant::now();
        thread::scope(|scope| {
            for number in 0..at_once {
                scope.spawn(move || square(number));
            }
        });
        println!("{at_once} commands at once: {:.1} s", clock.elapsed().as_secs_f64());
        let clock = Instant::now();
        (0..in_turn).for_each(square);
        println!("{in_turn} commands in turn: {:.1} s", clock.elapsed().as_secs_f64());

        // One does not read; the others are not held up by it.
        let clock = Instant::now();
        let stalled = numbers(&daemon, &names[0], 100 * MIB);
        let others = (1..streams).map(|number| numbers(&daemon, &names[number % sandboxes], bytes));
        let others: Vec<_> = others.map(|stream| scope.spawn(move || received(stream))).collect();
        let expected = hash_of_numbers(bytes);
        for other in others {
            assert_eq!(other.join().unwrap(), expected);
        }
        println!("{streams} streams: {:.1} s", clock.elapsed().as_secs_f64());
        if full {
            assert_eq!(received(stalled), expected);
        }
        drop(end);
        peak.join().unwrap()
    });

    // Nothing is left of it: commands, connections, threads, memory.
    until(|| names.iter().all(|name| daemon.running(name) == 0));
    until(|| descriptors(daemon.process.id()).len() == open && threads(&daemon) <= tasks);
    let after = memory(&daemon);
    println!("the daemon's memory: {before} KiB before, {peak} at most, {after} after");
    assert!(peak < before + GROWTH && after < before + GROWTH, "{before}, {peak}, {after} KiB");
    daemon
        .cli(&["rm", "-f"].into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>())
        .ends(0, &[]);
    daemon.is_clean();
}
