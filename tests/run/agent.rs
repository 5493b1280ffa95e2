//! The agent as PID 1: what it can be asked for beside what `voidrun run` asks.

use std::time::{SystemTime, UNIX_EPOCH};

use protocol::{Error, ErrorCode, Exec, Exit, Limits, MAX_STREAMS, Request};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::guest::{Guest, python, shell};
use crate::{Store, noise};

/// A machine with the image `code`, and the store with its diff.
fn boot() -> (Guest, Store) {
    let store = Store::new();
    (Guest::boot(&store.rootfs("code"), &store.path().join("diff"), 512), store)
}

#[test]
fn power_off_ends_processes_and_keeps_what_they_write() {
    let (guest, store) = boot();
    let script =
        "trap 'echo ended > /root/last-words; exit' TERM; touch /run/up; while :; do sleep 0.1; done";
    guest.start(Exec { detached: true, ..shell(script) });
    guest.shell("until [ -e /run/up ]; do sleep 0.1; done");
    // The way of one sandbox's own stream; `Guest::power_off` takes the machine's.
    guest.ask(&Request::PowerOff { grace_ms: Some(60_000) }).unwrap().done();
    guest.ends();

    let guest = Guest::boot(&store.rootfs("code"), &store.path().join("diff"), 512);
    assert_eq!(guest.shell("cat /root/last-words"), b"ended\n");
    let log = String::from_utf8(guest.shell("dmesg | grep EXT4-fs")).unwrap();
    assert!(!log.contains("recovery"), "{log}");
    guest.power_off();
}

#[test]
fn reseeding_sets_the_clock_and_takes_the_entropy() {
    let (mut guest, _store) = boot();
    let since = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let tells = !guest.shell("[ ! -e /dev/ptp0 ] || echo yes").is_empty();
    let asked = since().as_secs_f64();
    let booted: f64 = String::from_utf8(guest.shell("date +%s.%N")).unwrap().trim().parse().unwrap();
    let heard = since().as_secs_f64();
    assert!(!tells || (asked - 0.1..heard + 0.1).contains(&booted), "{booted} from {asked} to {heard}");
    let now = || since().as_secs();
    let tomorrow = now() + 86_400;
    let clock = |guest: &mut Guest| -> u64 {
        let wall_time_ns = tomorrow * 1_000_000_000;
        guest.control.send(&Request::Reseed { wall_time_ns, entropy: noise(64), config: None });
        guest.control.done();
        String::from_utf8(guest.shell("date +%s")).unwrap().trim().parse().unwrap()
    };
    // What KVM tells of the host's is right, whatever the request has been waiting for.
    let expected = if tells { now() } else { tomorrow };
    let seen = clock(&mut guest);
    assert!((expected..expected + 600).contains(&seen), "{seen}, and it is {expected}");
    // Without it, or with something else there, it is what the request says.
    guest.shell("rm -f /dev/ptp0; mkfifo /dev/ptp0");
    let seen = clock(&mut guest);
    assert!((tomorrow..tomorrow + 600).contains(&seen), "{seen}, set to {tomorrow}");

    guest.control.send(&Request::Reseed { wall_time_ns: 0, entropy: noise(31), config: None });
    let error: Error = guest.control.message();
    assert_eq!(error.code, ErrorCode::BadRequest, "{error}");
    guest.power_off();
}

#[test]
fn want_of_memory_is_told() {
    let (guest, _store) = boot();
    let eat = python("b = [b'x' * (1 << 20) for _ in range(1 << 20)]");
    let limits = Limits { memory_mib: Some(64), ..Limits::default() };
    // Of its own, and of the machine.
    for limits in [limits, Limits::default()] {
        let exit = guest.run(Exec { limits, ..eat.clone() }).exit;
        assert!(exit.oom_killed && exit.signal == Some(9), "{limits:?}: {exit:?}");
    }
    let exit = guest.run(shell("kill -9 $$")).exit;
    assert!(!exit.oom_killed && exit.signal == Some(9), "{exit:?}");
}

#[test]
fn output_is_cut_and_read_to_its_end() {
    let (guest, _store) = boot();
    let exec = shell("head -c 10000000 /dev/zero; head -c 1000 /dev/zero >&2; exit 3");
    let outcome = guest.run(Exec { output_limit: Some(1000), ..exec });
    let Exit { exit_code, truncated, .. } = outcome.exit;
    assert_eq!((exit_code, truncated.stdout, truncated.stderr), (Some(3), true, false));
    assert_eq!((outcome.stdout, outcome.stderr), (vec![0; 1000], vec![0; 1000]));
}

#[test]
fn a_timeout_leaves_no_process() {
    let (guest, _store) = boot();
    let script = "setsid sh -c 'trap \"\" TERM; sleep 98765' & setsid setsid sleep 98765 & sleep 98765";
    let exit = guest.run(Exec { timeout_ms: Some(2000), ..shell(script) }).exit;
    assert!(exit.timed_out, "{exit:?}");
    let processes = "for process in /proc/[0-9]*; do tr '\\0' ' ' < $process/cmdline; echo; done";
    let processes = String::from_utf8(guest.shell(processes)).unwrap();
    assert!(processes.contains("/proc/") && !processes.contains("98765"), "{processes}");
}

#[test]
fn as_many_streams_as_there_may_be() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let (guest, _store) = boot();
    let (_, pid) = guest.start(Exec { detached: true, ..shell("sleep 98765") });
    // One more is the agent's own.
    let mut streams: Vec<_> = (1..MAX_STREAMS)
        .map(|n| guest.ask(&Request::Wait { pid }).unwrap_or_else(|| panic!("{n}")))
        .collect();
    for _ in 0..10 {
        assert!(guest.ask(&Request::Wait { pid }).is_none());
    }
    // The last one makes room for the request that ends all others.
    drop(streams.pop());
    let mut kill = std::iter::repeat_with(|| guest.ask(&Request::Kill { pid, signal: Some(15) }));
    kill.find_map(|stream| stream).unwrap().done();
    for (number, mut stream) in streams.into_iter().enumerate() {
        let exit: Exit = stream.message();
        assert_eq!(exit.signal, Some(15), "stream {number}");
        assert_eq!(stream.next(), None);
    }
    assert_eq!(guest.shell("echo fine"), b"fine\n");
}
