//! A daemon that a command has started leaves when it has nothing to do.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::json;

use crate::daemon::Site;

fn ends_within(process: &OwnedFd, seconds: i64) -> bool {
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

fn started(idle_timeout: &str) -> (Site, OwnedFd) {
    let site = Site::new();
    site.voidrun.configure(&format!("[daemon]\nidle_timeout = '{idle_timeout}'\n"));
    site.run(&["ps"]).ok();
    let process = pidfd_open(site.daemon(), PidfdFlags::empty()).unwrap();
    (site, process)
}

#[test]
fn it_leaves_and_a_request_holds_it() {
    let (site, process) = started("1s");
    // A request that lasts.
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    assert!(!ends_within(&process, 4));
    let began = Instant::now();
    drop(stream);
    assert!(ends_within(&process, 30));
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    assert!(site.sockets().is_empty());
    let log = std::fs::read_to_string(site.voidrun.path(".local/state/voidrun/daemon.log")).unwrap();
    assert!(log.contains("nothing to do"), "{log}");
    // The next command starts another one.
    assert_eq!(site.run(&["ps", "--json"]).json(), json!([]));
}

#[test]
fn it_stays_where_the_limit_is_0() {
    let (site, process) = started("0");
    assert!(!ends_within(&process, 3));
    let settings = site.run(&["config", "--json"]).json();
    let settings = settings["settings"].as_array().unwrap();
    let idle = settings.iter().find(|setting| setting["key"] == "daemon.idle_timeout").unwrap();
    assert_eq!((&idle["value"], idle["origin"].as_str().unwrap().starts_with("file ")), (&json!("0s"), true));
}
