//! Bytes in and out.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use crate::{Ran, Store, noise, sha256};

const MANY: usize = 10 << 20;

#[test]
fn much_output_arrives_unchanged() {
    let store = Store::new();
    // The guest's digest of what it writes comes by the other stream.
    let script = "head -c 10485760 /dev/urandom > /tmp/x; sha256sum < /tmp/x >&2; cat /tmp/x";
    let ran = store.run(&["debian", "sh", "-c", script]);
    assert_eq!((ran.code, ran.stdout.len()), (Some(0), MANY));
    assert_eq!(ran.stderr.split(' ').next().unwrap(), sha256(&ran.stdout));
}

#[test]
fn much_input_comes_back() {
    let store = Store::new();
    let bytes = noise(MANY);
    let mut child = store.command(&["run", "-i", "debian", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let ran = std::thread::scope(|scope| {
        // The end of the pipe is the end of the command's input.
        scope.spawn(|| {
            stdin.write_all(&bytes).unwrap();
            drop(stdin);
        });
        Ran::from(child.wait_with_output().unwrap())
    });
    assert_eq!((ran.code, ran.stdout.len(), &*ran.stderr), (Some(0), MANY, ""));
    assert_eq!(sha256(&ran.stdout), sha256(&bytes));
    store.is_clean();
}

#[test]
fn a_command_that_does_not_read_its_input() {
    let store = Store::new();
    let mut child =
        store.command(&["run", "-i", "debian", "sh", "-c", "exit 7"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&noise(MANY))));
    assert_eq!(child.wait().unwrap().code(), Some(7));
    writer.join().unwrap();
    store.is_clean();
}

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let store = Store::new();
    let mut child = store.start(&["debian", "yes"]);
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    Ran::from(child.wait_with_output().unwrap()).ends(141, &[]);
    store.is_clean();
}
