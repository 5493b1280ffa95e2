//! Commands at a terminal.

use crate::detached::{attach, list, wait};
use crate::host::{Host, argv, eventually, is_alive, run, shell, start};
use protocol::{Exec, FrameType, Process, Request, WindowSize};

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

/// A command at a terminal that nobody is attached to yet.
fn session(exec: Exec) -> u32 {
    let (mut host, pid) = start(at_terminal(Exec { detached: true, ..exec }));
    assert_eq!(host.next(), None);
    pid
}

fn entry(pid: u32) -> Process {
    list().into_iter().find(|process| process.pid == pid).unwrap()
}

/// What is answered up to the end of the output so far.
fn leave(mut host: Host) -> Vec<u8> {
    host.send(FrameType::StdinEnd, b"");
    let mut output = Vec::new();
    loop {
        match host.next().unwrap() {
            (FrameType::Stdout, payload) => output.extend(payload),
            (FrameType::Done, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(host.next(), None);
    output
}

#[test]
fn a_session_outlives_those_who_are_attached() {
    let pid = session(shell("while read line; do echo \"<$line>\"; done; echo over"));
    let mut first = attach(pid);
    first.send(FrameType::Stdin, b"one\n");
    first.until("<one>\r\n");
    let mut second = attach(pid);
    second.until("one\r\n<one>\r\n");
    assert_eq!((entry(pid).terminal, entry(pid).attached, entry(pid).exit), (true, 2, None));
    drop(first);
    eventually("the first one gone", || entry(pid).attached == 1);
    second.send(FrameType::Stdin, b"two\n");
    second.until("<two>\r\n");
    drop(second);
    // Typed and left at once: it is written before the answer comes.
    let mut third = attach(pid);
    third.send(FrameType::Stdin, b"three\n");
    leave(third);
    attach(pid).until("<three>\r\n");
    assert_eq!(leave(attach(pid)), b"one\r\n<one>\r\ntwo\r\n<two>\r\nthree\r\n<three>\r\n");
    let mut last = attach(pid);
    last.send(FrameType::Stdin, b"\x04");
    let outcome = last.outcome();
    assert!(outcome.text().ends_with("<three>\r\nover\r\n") && outcome.exit.exit_code == Some(0));
    assert_eq!(wait(pid).exit_code, Some(0));
    assert!(attach(pid).outcome().text().ends_with("over\r\n"));
}

#[test]
fn resizing_a_session() {
    let pid = session(shell("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"));
    let mut host = attach(pid);
    host.until("ready");
    host.message(&WindowSize { rows: 50, cols: 132 });
    leave(host);
    assert_eq!(wait(pid).exit_code, Some(0));
    assert_eq!(attach(pid).outcome().text().trim_start_matches("ready").trim(), "50 132");
}

#[test]
fn a_session_that_nobody_reads_goes_on_and_input_that_nobody_takes_waits() {
    let pid = session(shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; exec sleep 1000"));
    eventually("all of it written", || leave(attach(pid)).ends_with(b"x\r\n"));
    let kept = leave(attach(pid));
    assert!((500_000..=1 << 20).contains(&kept.len()), "{}", kept.len());
    // The terminal takes some 4 KiB of a line that nobody reads; whoever is attached can go all the same.
    let mut host = attach(pid);
    for _ in 0..8 {
        host.send(FrameType::Stdin, &[b'y'; 8192]);
    }
    drop(host);
    eventually("nobody attached", || entry(pid).attached == 0);
    Host::ask(&Request::Kill { pid, signal: Some(9) }).done();
    assert_eq!(wait(pid).signal, Some(9));
}

#[test]
fn what_is_typed_gets_through_output_that_nobody_reads() {
    let line = "trap 'stty size; exit 7' INT; head -c 3000000 /dev/zero | tr '\\0' x; echo";
    let pid = session(shell(&format!("{line}; while :; do sleep 0.05; done")));
    eventually("all of it written", || leave(attach(pid)).ends_with(b"x\r\n"));
    let mut host = attach(pid);
    // More than the stream holds: there is no room when no more comes while the agent does other things.
    let unread = || rustix::io::ioctl_fionread(&host.socket).unwrap();
    eventually("the stream full", || {
        let before = unread();
        before > 100_000
            && (0..10).all(|_| run(argv(&["true"])).exit.exit_code == Some(0) && unread() == before)
    });
    host.message(&WindowSize { rows: 50, cols: 132 });
    host.send(FrameType::Stdin, b"\x03");
    assert_eq!(wait(pid).exit_code, Some(7));
    assert!(host.outcome().text().trim_end().ends_with("50 132"));
}

#[test]
fn a_session_is_ended_with_all_that_runs_in_it() {
    let pid = session(argv(&["bash", "--norc", "-i"]));
    let mut host = attach(pid);
    host.send(FrameType::Stdin, b"setsid sleep 1000 & echo \"[$!]\"\n");
    let child = host.until("]\r\n");
    let child = child.rsplit('[').next().unwrap().trim_end_matches("]\r\n").to_owned();
    Host::ask(&Request::Kill { pid, signal: None }).done();
    let exit = wait(pid);
    // By SIGHUP: the shell ignores SIGTERM, for which two seconds would pass.
    assert!(exit.signal == Some(1) && exit.duration_ms < 2000, "{exit:?}");
    eventually("the child gone", || !is_alive(&child));
}
