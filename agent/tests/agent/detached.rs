//! Commands in the background.

use crate::host::{Host, eventually, is_alive, run, shell, start};
use protocol::{Error, ErrorCode, Exec, Exit, FrameType, Process, Request, Started};

fn background(line: &str) -> u32 {
    let (mut host, pid) = start(Exec { detached: true, ..shell(line) });
    assert_eq!(host.next(), None);
    pid
}

pub(crate) fn wait(pid: u32) -> Exit {
    Host::ask(&Request::Wait { pid }).expect()
}

pub(crate) fn attach(pid: u32) -> Host {
    let mut host = Host::ask(&Request::Attach { pid, skip: 0 });
    assert_eq!(host.expect::<Started>().pid, pid);
    host
}

pub(crate) fn list() -> Vec<Process> {
    let mut host = Host::ask(&Request::List);
    let mut list = Vec::new();
    loop {
        let (kind, payload) = host.next().unwrap();
        if kind == FrameType::Done {
            return list;
        }
        list.push(protocol::Frame { kind, payload: &payload }.message().unwrap());
    }
}

#[test]
fn it_outlives_its_stream_and_answers_again() {
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let line = format!("echo one; while ! test -e {}; do sleep 0.02; done; echo two; exit 5", go.display());
    let pid = background(&line);
    let mut first = attach(pid);
    first.until("one\n");
    let entry = list().into_iter().find(|process| process.pid == pid).unwrap();
    assert!(entry.detached && entry.exit.is_none() && entry.command == line && entry.start_time_ms > 0);
    let mut waiting = Host::ask(&Request::Wait { pid });
    std::fs::write(&go, "").unwrap();
    assert_eq!(waiting.expect::<Exit>().exit_code, Some(5));
    assert_eq!((wait(pid).exit_code, wait(pid).exit_code), (Some(5), Some(5)));
    assert_eq!(first.outcome().text(), "two\n");
    let late = attach(pid).outcome();
    assert_eq!(
        (late.text(), late.exit.exit_code, late.exit.truncated.stdout),
        ("one\ntwo\n", Some(5), false)
    );
    assert_eq!(list().into_iter().find(|process| process.pid == pid).unwrap().exit, Some(wait(pid)));
}

#[test]
fn only_the_latest_output_is_kept() {
    let pid = background("head -c 3000000 /dev/zero; echo end");
    wait(pid);
    let outcome = attach(pid).outcome();
    assert!(outcome.stdout.ends_with(b"\0end\n") && outcome.exit.truncated.stdout);
    assert!((500_000..=1 << 20).contains(&outcome.stdout.len()), "{}", outcome.stdout.len());
}

#[test]
fn killing() {
    let pid = background("setsid sleep 1000 & echo $!; wait");
    let child = attach(pid).until("\n");
    Host::ask(&Request::Kill { pid, signal: None }).done();
    let exit = wait(pid);
    assert!(exit.signal == Some(15) && !exit.timed_out);
    eventually("the child gone", || !is_alive(&child));
    let mut again = Host::ask(&Request::Kill { pid, signal: Some(15) });
    assert_eq!(again.expect::<Error>().code, ErrorCode::ProcessEnded);
    let pid = background("sleep 1000");
    let mut nonsense = Host::ask(&Request::Kill { pid, signal: Some(65) });
    assert_eq!(nonsense.expect::<Error>().code, ErrorCode::BadRequest);
    Host::ask(&Request::Kill { pid, signal: Some(9) }).done();
    assert_eq!(wait(pid).signal, Some(9));
}

#[test]
fn a_timeout_holds_in_the_background() {
    // The child holds no output open when the main process ends, and ignores what ends that.
    let line = "setsid sh -c 'trap \"\" TERM; echo $$; exec >/dev/null 2>&1; while :; do sleep 1; done' & exec sleep 1000";
    let (_, pid) = start(Exec { detached: true, timeout_ms: Some(500), ..shell(line) });
    let child = attach(pid).until("\n");
    assert!(wait(pid).timed_out);
    eventually("the child gone", || !is_alive(&child));
}

#[test]
fn a_service_goes_on_after_the_command_that_started_it() {
    let pid = background("setsid sleep 1000 & echo $!");
    assert_eq!(wait(pid).exit_code, Some(0));
    let service = attach(pid).outcome();
    assert!(is_alive(service.text()));
    let kill = run(shell(&format!("kill {}", service.text())));
    assert_eq!(kill.exit.exit_code, Some(0));
    eventually("the service gone", || !is_alive(service.text()));
}

#[test]
fn what_is_not_there() {
    for request in [
        Request::Wait { pid: 4_000_000 },
        Request::Kill { pid: 4_000_000, signal: None },
        Request::Attach { pid: 4_000_000, skip: 0 },
    ] {
        let mut host = Host::ask(&request);
        assert_eq!(host.expect::<Error>().code, ErrorCode::NoSuchProcess);
    }
    let (mut host, pid) = start(shell("echo on; exec sleep 1000"));
    host.until("on");
    let mut attach = Host::ask(&Request::Attach { pid, skip: 0 });
    assert_eq!(attach.expect::<Error>().code, ErrorCode::BadRequest);
}
