//! The command: its output, its end, and what it finds around it.

use std::process::Stdio;

use crate::{Ran, Store};

#[test]
fn output_and_exit_codes() {
    let store = Store::new();
    store.run(&["code", "python3", "-c", "print(6 * 7)"]).prints("42\n");
    store.run(&["debian", "--", "cat", "/etc/hostname"]).ends(0, &[]);
    for code in [0, 1, 42] {
        store.run(&["debian", "sh", "-c", &format!("exit {code}")]).ends(code, &[]);
    }
    let ran = store.run(&["debian", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((&ran.stdout[..], &*ran.stderr), (&b"out\n"[..], "err\n"));
}

#[test]
fn signals_and_what_cannot_be_run() {
    let store = Store::new();
    store.run(&["debian", "sh", "-c", "kill -TERM $$"]).ends(143, &[]);
    store.run(&["debian", "sh", "-c", "kill -KILL $$"]).ends(137, &[]);
    store.run(&["debian", "no-such-program"]).ends(127, &["no-such-program"]);
    store.run(&["debian", "/no/such/program"]).ends(127, &["/no/such/program"]);
    store.run(&["debian", "/etc/passwd"]).ends(126, &["/etc/passwd"]);
    store.run(&["-w", "/no/such/directory", "debian", "true"]).ends(125, &["/no/such/directory"]);
    store.run(&["-u", "nobody-of-that-name", "debian", "true"]).ends(125, &["nobody-of-that-name"]);
}

#[test]
fn environment_directory_and_user() {
    let store = Store::new();
    let script = "echo $A $B $TOKEN; pwd; id -un; id -u";
    let arguments = [
        "run",
        "-e",
        "A=one two",
        "-e",
        "TOKEN",
        "-w",
        "/usr/lib",
        "-u",
        "nobody",
        "debian",
        "sh",
        "-c",
        script,
    ];
    let mut command = store.command(&arguments);
    let ran = Ran::from(command.env("TOKEN", "secret").output().unwrap());
    ran.prints("one two secret\n/usr/lib\nnobody\n65534\n");
    store.is_clean();
    store.run(&["-u", "12:34", "debian", "sh", "-c", "id -u; id -g; pwd"]).prints("12\n34\n/\n");
    // Nothing of this environment goes along unasked.
    let ran = Ran::from(store.command(&["run", "debian", "env"]).env("TOKEN", "secret").output().unwrap());
    let text = ran.text();
    assert!(!text.contains("secret") && text.contains("PATH="), "{text}");
}

#[test]
fn the_entrypoint_is_honoured() {
    let store = Store::new();
    store.run(&["--entrypoint", "/bin/echo", "debian", "-n", "a b"]).prints("a b");
    store.run(&["--entrypoint", "", "debian", "echo", "x"]).prints("x\n");
}

#[test]
fn standard_input_is_closed_unless_it_is_asked_for() {
    let store = Store::new();
    // `cat` would wait for ever for the end of a pipe that nobody closes.
    let mut command = store.command(&["run", "debian", "cat"]);
    let child = command.stdin(Stdio::piped()).spawn().unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    ran.prints("");
}
