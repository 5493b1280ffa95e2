//! Commands at a terminal.

use crate::host::{argv, run, shell, start};
use protocol::{Exec, FrameType, WindowSize};

fn at_terminal(exec: Exec) -> Exec {
    Exec { tty: Some(WindowSize { rows: 24, cols: 80 }), ..exec }
}

#[test]
fn it_is_a_terminal_of_its_size() {
    let line =
        "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM && echo err >&2 && : </dev/tty";
    let outcome = run(at_terminal(shell(line)));
    assert_eq!((outcome.text(), outcome.exit.exit_code), ("24 80\r\nxterm\r\nerr\r\n", Some(0)));
    assert!(outcome.stderr.is_empty());
}

#[test]
fn resizing_is_seen() {
    let line = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done";
    let (mut host, _) = start(at_terminal(shell(line)));
    host.until("ready");
    host.message(&WindowSize { rows: 50, cols: 132 });
    assert_eq!(host.outcome().text().trim(), "50 132");
}

#[test]
fn what_is_typed_is_read_and_control_c_interrupts() {
    let (mut host, _) = start(at_terminal(shell("read line; echo \"got $line\"; exec sleep 1000")));
    host.send(FrameType::Stdin, b"hello\n");
    host.until("got hello");
    host.send(FrameType::Stdin, b"\x03");
    assert_eq!(host.outcome().exit.signal, Some(2));
}

#[test]
fn the_end_of_input_is_an_end_of_file() {
    let (mut host, _) = start(at_terminal(argv(&["cat"])));
    host.send(FrameType::Stdin, b"line\n");
    host.until("line\r\nline\r\n");
    host.send(FrameType::StdinEnd, b"");
    assert_eq!(host.outcome().exit.exit_code, Some(0));
}

/// The last words of a session leader: its end hangs the terminal up.
#[test]
fn no_output_is_lost_at_exit() {
    for round in 0..200 {
        let outcome = run(at_terminal(argv(&["echo", "last words"])));
        assert_eq!(outcome.text(), "last words\r\n", "round {round}");
    }
    let outcome = run(at_terminal(shell("head -c 200000 /dev/zero | tr '\\0' x; printf end")));
    assert_eq!(outcome.stdout.len(), 200_003);
    assert!(outcome.stdout.ends_with(b"xend"));
}
