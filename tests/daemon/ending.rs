//! The end of a daemon that has something to do.

use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::Value;

use crate::{Daemon, Ran, until};

#[test]
fn sessions_are_awaited_and_then_told() {
    let mut daemon = Daemon::new();
    daemon.create("dev");
    let session = |script: &str| {
        let mut child = daemon.store.command(&["exec", "dev", "sh", "-c", script]).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        (child, output)
    };
    let (short, mut output) = session("echo up; sleep 2; echo done; exit 3");
    let (long, _output) = session("echo up; sleep 1000");
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let ended = Ran::from(short.wait_with_output().unwrap());
    assert_eq!((ended.code, &*line), (Some(3), "done\n"), "{ended:?}");
    Ran::from(long.wait_with_output().unwrap()).ends(125, &["the daemon is ending"]);
    assert_eq!(daemon.process.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());

    // What the long one ran has ended with it.
    let store = std::mem::replace(&mut daemon.store, crate::Store::empty());
    drop(daemon);
    let daemon = Daemon::on(store);
    until(|| {
        let list = daemon.data("GET", "/v1/sandboxes/dev/commands/list", Value::Null);
        list.as_array().unwrap().iter().all(|command| command["running"] == false)
    });
    daemon.cli(&["rm", "dev", "-f", "absent"]).ends(1, &["there is no sandbox absent"]);
    daemon.is_clean();
}

/// What was done before something failed is told.
#[test]
fn some_of_several() {
    let daemon = Daemon::new();
    daemon.create("one");
    let ran = daemon.cli(&["pause", "one", "absent", "one"]);
    ran.ends(1, &["there is no sandbox absent"]);
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), "one\n");
    let ran = daemon.cli(&["rm", "-f", "one", "absent"]);
    ran.ends(1, &["there is no sandbox absent"]);
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), "one\n");
    daemon.is_clean();
}

#[test]
fn a_sandbox_holds_the_daemon_that_a_command_has_started() {
    let mut daemon = Daemon::configured("[daemon]\nidle_timeout = '1s'\n");
    daemon.signal(Signal::TERM);
    daemon.process.wait().unwrap();
    daemon.create("dev");
    let pid = daemon.ask("GET", "/version", Value::Null).1["pid"].as_i64().unwrap();
    let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let ended =
        || poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&Timespec { tv_sec: 5, tv_nsec: 0 }));
    assert_eq!(ended(), Ok(0));
    daemon.cli(&["stop", "dev"]).prints("dev\n");
    crate::guests::dies(&process);
    // The next one knows it.
    daemon.cli(&["rm", "dev"]).prints("dev\n");
    daemon.is_clean();
}
