//! Commands in the foreground.

use crate::host::{Host, argv, connect, eventually, is_alive, refused, run, shell, start};
use protocol::{ErrorCode, Exec, FrameType, Limits, Request};
use std::io::Write;
use std::net::Shutdown;
use std::thread;

#[test]
fn output_exit_codes_and_signals() {
    let outcome = run(shell("echo out; echo err >&2; exit 42"));
    assert_eq!((outcome.text(), outcome.stderr.as_slice()), ("out\n", &b"err\n"[..]));
    assert_eq!((outcome.exit.exit_code, outcome.exit.signal), (Some(42), None));
    for code in [0, 1, 255] {
        assert_eq!(run(shell(&format!("exit {code}"))).exit.exit_code, Some(code));
    }
    for signal in [9, 11, 15] {
        let exit = run(shell(&format!("kill -{signal} $$"))).exit;
        assert_eq!((exit.exit_code, exit.signal), (None, Some(signal)));
        assert!(!exit.timed_out && !exit.oom_killed && exit.truncated == protocol::Truncated::default());
    }
}

#[test]
fn argv_is_not_a_shell() {
    let outcome = run(argv(&["echo", "$HOME", "*", "a b", ""]));
    assert_eq!(outcome.text(), "$HOME * a b \n");
}

#[test]
fn a_line_runs_in_bash_where_there_is_one() {
    let outcome = run(shell("echo $0 $#"));
    let shell = if std::path::Path::new("/bin/bash").exists() { "/bin/bash 0\n" } else { "/bin/sh 0\n" };
    assert_eq!(outcome.text(), shell);
}

#[test]
fn environment_and_directory() {
    let env = [("A".to_owned(), "b c=d".to_owned()), ("HOME".to_owned(), "/nowhere".to_owned())];
    let exec = Exec { env: env.into(), cwd: Some("/usr/bin".into()), ..argv(&["/usr/bin/env"]) };
    let outcome = run(exec);
    let mut lines: Vec<_> = outcome.text().lines().collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines, ["A=b c=d", "HOME=/nowhere", path]);
    let exec = Exec { cwd: Some("/usr/bin".into()), ..argv(&["pwd"]) };
    assert_eq!(run(exec).text(), "/usr/bin\n");
    // A relative program is meant from there; its own PATH counts.
    let exec = Exec { cwd: Some("/usr".into()), ..argv(&["bin/echo", "here"]) };
    assert_eq!(run(exec).text(), "here\n");
    let exec = Exec { env: [("PATH".to_owned(), "/nowhere".to_owned())].into(), ..argv(&["echo"]) };
    assert_eq!(refused(exec).code, ErrorCode::NotFound);
}

#[test]
fn a_command_inherits_nothing_of_the_agent() {
    // The listing itself has one descriptor open, of the directory.
    let outcome = run(argv(&["ls", "/proc/self/fd"]));
    assert_eq!(outcome.text(), "0\n1\n2\n3\n");
    let status = run(argv(&["grep", "-E", "^(SigBlk|SigIgn|Umask)", "/proc/self/status"]));
    let fields: Vec<_> = status.text().split_whitespace().collect();
    let ["Umask:", umask, "SigBlk:", blocked, "SigIgn:", ignored] = fields[..] else { panic!("{fields:?}") };
    assert_eq!((umask, blocked), ("0022", "0000000000000000"));
    // SIGPIPE, which Rust's runtime ignores, among them; what is above was ignored before the agent began.
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff, 0, "{ignored}");
    assert_eq!(run(argv(&["cat", "/proc/self/oom_score_adj"])).text(), "0\n");
}

#[test]
fn what_cannot_be_run_is_typed() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "text", 0o644);
    let script = file("script", "#!/no/such/interpreter\n", 0o755);
    let garbage = file("garbage", "\0\0\0\0", 0o755);
    let error = refused(argv(&["no-such-program"]));
    assert_eq!((error.code, error.errno), (ErrorCode::NotFound, Some(2)));
    assert_eq!(error.message, "no-such-program: not found in PATH");
    for (program, code, errno) in [
        ("/no/such/program", ErrorCode::NotFound, 2),
        (&script, ErrorCode::NotFound, 2),
        (&plain, ErrorCode::NotExecutable, 13),
        (&garbage, ErrorCode::NotExecutable, 8),
        ("/usr", ErrorCode::NotExecutable, 13),
    ] {
        let error = refused(argv(&[program]));
        assert_eq!((error.code, error.errno), (code, Some(errno)), "{error}");
        assert!(error.message.contains(program), "{error}");
    }
    assert!(refused(argv(&[&script])).message.contains("interpreter"));

    for cwd in ["/no/such/directory", &plain, "relative"] {
        let error = refused(Exec { cwd: Some(cwd.into()), ..argv(&["true"]) });
        assert_eq!(error.code, ErrorCode::Cwd);
        assert!(error.message.contains(cwd), "{error}");
    }
    for exec in [
        argv(&[]),
        argv(&[""]),
        argv(&["echo", "a\0b"]),
        Exec { env: [("A=B".to_owned(), String::new())].into(), ..argv(&["true"]) },
        Exec { limits: Limits { cpu_millis: Some(1), ..Limits::default() }, ..argv(&["true"]) },
    ] {
        assert_eq!(refused(exec).code, ErrorCode::BadRequest);
    }
    let error = refused(Exec { user: Some("no-such-user".into()), ..argv(&["true"]) });
    assert_eq!(error.code, ErrorCode::User);
}

#[test]
fn no_input_is_an_empty_one() {
    let outcome = run(argv(&["cat"]));
    assert_eq!((outcome.text(), outcome.exit.exit_code), ("", Some(0)));
}

/// Both ways at once, each far beyond any buffer.
#[test]
fn ten_mib_through_a_command_and_back() {
    let (mut host, _) = start(Exec { stdin: true, ..argv(&["cat"]) });
    let content: Vec<u8> = (0..10u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = host.socket.try_clone().unwrap();
    let sent = content.clone();
    let sender = thread::spawn(move || {
        let mut bytes = Vec::new();
        for piece in sent.chunks(protocol::MAX_PAYLOAD) {
            protocol::Frame { kind: FrameType::Stdin, payload: piece }.encode(&mut bytes).unwrap();
        }
        bytes.extend(protocol::header(FrameType::StdinEnd, 0));
        writer.write_all(&bytes).unwrap();
    });
    let mut back = Vec::new();
    while back.len() < content.len() {
        let (kind, payload) = host.next().unwrap();
        assert_eq!(kind, FrameType::Stdout);
        back.extend(payload);
    }
    sender.join().unwrap();
    assert!(back == content);
    assert_eq!(host.outcome().exit.exit_code, Some(0));
}

#[test]
fn input_that_nobody_reads_does_not_hold_up_the_end() {
    let exec = Exec { stdin: true, ..shell("exec <&-; echo closed; sleep 0.1") };
    let (mut host, _) = start(exec);
    host.until("closed");
    for _ in 0..64 {
        host.send(FrameType::Stdin, &vec![7; 60_000]);
    }
    assert_eq!(host.outcome().exit.exit_code, Some(0));
}

/// The host reads nothing until the command is long over; a pipe and the stream hold what there is room for.
#[test]
fn no_output_is_lost_at_the_exit_of_a_slow_host() {
    let (host, _) = start(shell("head -c 3000000 /dev/zero; echo end"));
    let (watch, _) = start(shell("sleep 0.5"));
    watch.outcome();
    let outcome = host.outcome();
    assert_eq!(outcome.stdout.len(), 3_000_004);
    assert!(outcome.stdout.ends_with(b"\0end\n"));
}

#[test]
fn output_beyond_its_limit_is_drained() {
    let line = "head -c 1000000 /dev/zero; echo short >&2; exit 3";
    let outcome = run(Exec { output_limit: Some(1000), ..shell(line) });
    assert_eq!((outcome.stdout.len(), outcome.stderr.as_slice()), (1000, &b"short\n"[..]));
    assert_eq!(outcome.exit.exit_code, Some(3));
    assert!(outcome.exit.truncated.stdout && !outcome.exit.truncated.stderr);
    let exact = run(Exec { output_limit: Some(4), ..shell("printf four") });
    assert!(exact.stdout == b"four" && !exact.exit.truncated.stdout);
}

/// Children in sessions of their own, one of which ignores SIGTERM.
const TREE: &str =
    "setsid sleep 1000 & echo $!; setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' & wait";

fn tree_pids(host: &mut Host) -> Vec<String> {
    let mut text = String::new();
    while text.lines().count() < 2 || !text.ends_with('\n') {
        text += &host.until("\n");
    }
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_timeout_ends_the_whole_tree() {
    let (mut host, pid) = start(Exec { timeout_ms: Some(300), ..shell(TREE) });
    let children = tree_pids(&mut host);
    let exit = host.outcome().exit;
    assert!(exit.timed_out && exit.signal == Some(15) && exit.exit_code.is_none(), "{exit:?}");
    assert!((300..5000).contains(&exit.duration_ms), "{exit:?}");
    eventually("every process gone", || {
        !is_alive(&pid.to_string()) && children.iter().all(|child| !is_alive(child))
    });
}

#[test]
fn what_ignores_sigterm_is_killed_after_two_seconds() {
    let exec = Exec { timeout_ms: Some(100), ..shell("trap '' TERM; while :; do sleep 0.1; done") };
    let outcome = run(exec);
    assert!(outcome.exit.timed_out && outcome.exit.signal == Some(9));
    assert!((2000..6000).contains(&outcome.exit.duration_ms), "{:?}", outcome.exit);
}

#[test]
fn a_host_that_goes_away_ends_the_command() {
    for way in [None, Some(Shutdown::Write), Some(Shutdown::Both)] {
        let (mut host, pid) = start(shell(TREE));
        let children = tree_pids(&mut host);
        assert!(children.iter().all(|child| is_alive(child)));
        match way {
            Some(how) => host.socket.shutdown(how).unwrap(),
            None => drop(host),
        }
        eventually("every process gone", || {
            !is_alive(&pid.to_string()) && children.iter().all(|child| !is_alive(child))
        });
    }
}

/// Unread input lies before the end of the stream.
#[test]
fn a_host_that_goes_away_behind_unread_input_ends_the_command() {
    let (mut host, pid) = start(Exec { stdin: true, ..argv(&["sleep", "1000"]) });
    // As much as there is room for: the pipe, the agent's piece, the socket.
    host.socket.set_nonblocking(true).unwrap();
    let mut frame = protocol::header(FrameType::Stdin, 60_000).to_vec();
    frame.resize(frame.len() + 60_000, 7);
    while host.socket.write_all(&frame).is_ok() {}
    drop(host);
    eventually("the command gone", || !is_alive(&pid.to_string()));
}

#[test]
fn what_is_left_running_goes_with_its_command() {
    let outcome = run(shell("setsid sleep 1000 & echo $!"));
    assert_eq!(outcome.exit.exit_code, Some(0));
    assert!(outcome.exit.duration_ms < 200);
    eventually("the child gone", || !is_alive(outcome.text()));
}

#[test]
fn signals_reach_the_process_group() {
    let line = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done";
    let (mut host, _) = start(shell(line));
    host.until("ready");
    host.message(&protocol::message::Signal { signal: 2 });
    let outcome = host.outcome();
    assert_eq!((outcome.text(), outcome.exit.exit_code), ("caught\n", Some(7)));
    let (mut host, pid) = start(shell("echo ready; sleep 1000 | cat"));
    host.until("ready");
    Host::ask(&Request::Kill { pid, signal: Some(9) }).done();
    assert_eq!(host.outcome().exit.signal, Some(9));
}

#[test]
fn what_is_no_request_is_answered() {
    let mut host = Host::ask(&Request::List);
    while host.next().is_some_and(|(kind, _)| kind == FrameType::Process) {}
    for (kind, payload) in
        [(FrameType::Request, &b"{}"[..]), (FrameType::Request, b"nonsense"), (FrameType::Stdin, b"")]
    {
        let ours = connect();
        let mut bytes = Vec::new();
        protocol::Frame { kind, payload }.encode(&mut bytes).unwrap();
        (&ours).write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut &ours, &mut answer).unwrap();
        assert_eq!(answer[4], FrameType::Error as u8);
        assert!(String::from_utf8_lossy(&answer).contains("badRequest"));
    }
}
