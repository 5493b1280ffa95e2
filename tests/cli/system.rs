//! The program's own housekeeping.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::daemon::Site;
use crate::support::{Layout, Ran, layer};
use crate::two_layers;

fn part<'a>(df: &'a Value, what: &str) -> &'a Value {
    df.as_array().unwrap().iter().find(|part| part["what"] == what).unwrap()
}

#[test]
fn what_takes_room_and_what_goes() {
    let site = Site::new();
    let run = |arguments: &[&str]| Ran::from(site.command(arguments).output().unwrap());
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    let other = site.voidrun.layout("other", &Layout::of(&[layer(&[("file", &[7; 9000])])]));
    run(&["images", "pull", &source]).ok();
    run(&["images", "pull", &other, "--name", "other"]).ok();
    let df = run(&["system", "df", "--json"]).json();
    assert_eq!((&part(&df, "images")["count"], &part(&df, "layers")["count"]), (&json!(2), &json!(3)));
    assert!(part(&df, "images")["bytes"].as_u64().unwrap() > 9000);
    assert!(run(&["system", "df"]).ok().stdout.contains("layers"));

    // What is told before is what goes then.
    for (arguments, left) in [(&["system", "prune"][..], 2), (&["system", "prune", "--all"], 0)] {
        let told = run(&[arguments, &["--dry-run", "--json"]].concat()).json();
        assert_eq!(part(&run(&["system", "df", "--json"]).json(), "images")["count"], 2);
        let done = run(&[arguments, &["--json"]].concat()).json();
        let sorted = |removed: &Value| {
            let mut all: Vec<String> =
                removed["removed"].as_array().unwrap().iter().map(Value::to_string).collect();
            all.sort();
            all
        };
        assert_eq!(sorted(&told), sorted(&done));
        assert_eq!((&told["freedBytes"], &told["dryRun"]), (&done["freedBytes"], &json!(true)));
        let df = run(&["system", "df", "--json"]).json();
        assert_eq!((&part(&df, "images")["count"], &part(&df, "layers")["count"]), (&json!(left), &json!(0)));
    }
}

#[test]
fn the_daemon_collects_by_itself() {
    let site = Site::new();
    site.voidrun.configure("[gc]\nbudget = '0B'\ngrace = '0s'\n");
    let run = |arguments: &[&str]| Ran::from(site.command(arguments).output().unwrap()).ok();
    run(&["ps"]);
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    run(&["images", "pull", &source]);
    let end = Instant::now() + Duration::from_mins(1);
    while !site.voidrun.files("blobs/sha256").is_empty() {
        assert!(Instant::now() < end, "{:?}", site.voidrun.files("blobs/sha256"));
        std::thread::sleep(Duration::from_millis(50));
    }
    // The image has a name.
    assert_eq!(site.voidrun.names().len(), 1);
}

#[test]
fn reset_removes_everything() {
    let site = Site::new();
    let run = |arguments: &[&str]| Ran::from(site.command(arguments).output().unwrap());
    run(&["reset", "--yes"]).ok();
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    run(&["images", "pull", &source]).ok();
    run(&["ps"]).ok();
    for part in ["snapshots/ready", "warm/key"] {
        std::fs::create_dir_all(site.voidrun.store().join(part)).unwrap();
        std::fs::write(site.voidrun.store().join(part).join("machine"), [7; 9000]).unwrap();
    }
    let df = run(&["system", "df", "--json"]).json();
    for what in ["snapshots", "warm starts"] {
        assert!(part(&df, what)["count"] == 1 && part(&df, what)["bytes"].as_u64() > Some(9000), "{df}");
    }
    let daemon = rustix::process::pidfd_open(site.daemon(), rustix::process::PidfdFlags::empty()).unwrap();
    run(&["reset"]).fails(2, &["--yes", &site.voidrun.store().display().to_string()]);
    assert_eq!(site.voidrun.names().len(), 1);
    // What is not ours stays.
    std::fs::write(site.voidrun.store().join("notes.txt"), b"mine").unwrap();
    run(&["reset", "--yes"]).ok();
    let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&daemon, PollFlags::IN)], Some(&limit)), Ok(1));
    assert_eq!(site.voidrun.files(""), ["notes.txt"]);
    let left: Vec<_> = std::fs::read_dir(site.voidrun.path("runtime/voidrun")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!site.voidrun.path(".local/state/voidrun/daemon.log").exists());
    // And it begins anew.
    assert_eq!(run(&["ps", "--json"]).json(), json!([]));
}
