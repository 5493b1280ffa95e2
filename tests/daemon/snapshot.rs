//! Snapshots, and sandboxes that are made from them.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guests::{Ran, count};
use crate::sleep::{COUNTER, jail, now};
use crate::{Daemon, until};

/// Asks a server in the sandbox.
const FETCH: &str = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/')";
/// Counts, and writes what a library of random numbers gives to a process that began before the snapshot; of many at once each takes little.
const UUIDS: &str = "python3 - <<'END'
import os, time, uuid
n = 0
while True:
    n += 1
    for name, what in ('uuid', uuid.uuid4()), ('count', n):
        open(f'/run/{name}.new', 'w').write(f'{what}')
        os.rename(f'/run/{name}.new', f'/run/{name}')
    time.sleep(1)
END
";
/// The clock, and what no two sandboxes have in common: of both random generators, the kernel's and the library's, too.
const OWN: &str = "date +%s.%N; hostname; cat /etc/machine-id /sys/class/net/eth0/address; od -An -N16 -tx1 /dev/urandom; cat /run/uuid";
/// So many of the clones are asked for more.
const ASKED: usize = 3;

impl Daemon {
    /// What a command in a sandbox prints.
    #[track_caller]
    fn said(&self, sandbox: &str, line: &str) -> String {
        let ran = self.cli(&["exec", sandbox, "sh", "-c", line]);
        if ran.code != Some(0) {
            // What has become of it.
            eprintln!("{}", self.data("GET", &format!("/v1/sandboxes/{sandbox}"), Value::Null));
        }
        ran.text().trim_end().to_owned()
    }

    fn from_snapshot(&self, snapshot: &str, name: &str) -> Value {
        self.data("POST", "/v1/sandboxes", json!({ "fromSnapshot": snapshot, "name": name }))
    }
}

/// Whether none is the same as another.
fn differ(of: &[String]) -> bool {
    of.iter().all(|one| !one.is_empty()) && of.iter().collect::<BTreeSet<_>>().len() == of.len()
}

#[test]
fn clones_go_on_from_there_each_as_a_sandbox_of_its_own() {
    // Of what they may have together, clones take little.
    let daemon = Daemon::configured("[limits]\nmemory = '64GiB'\n");
    let create = json!({ "image": "code", "name": "dev", "mem": 512, "labels": { "a": "b" } });
    daemon.data("POST", "/v1/sandboxes", create);
    daemon.background("dev", UUIDS);
    daemon.goes_on("dev");
    daemon.background("dev", "python3 -m http.server --bind 127.0.0.1 8000");
    until(|| daemon.cli(&["exec", "dev", "python3", "-c", FETCH]).code == Some(0));
    let write = "echo disk > /root/disk; echo memory > /dev/shm/memory; echo '192.0.2.7 by-hand' >> /etc/hosts; mkfifo /run/end; hostname";
    let hostname = daemon.said("dev", write);
    until(|| {
        daemon.cli(&["exec", "dev", "test", "-s", "/run/uuid", "-a", "-s", "/run/count"]).code == Some(0)
    });
    // Whoever waits for a command in it is not disturbed. In the clones it waits for ever, and must not take their CPU.
    let wait = "read -r _ < /run/end; echo ended";
    let waits = daemon.store.command(&["exec", "dev", "sh", "-c", wait]).spawn().unwrap();
    until(|| daemon.running("dev") == 5);
    daemon.asks("dev", 1);

    let counted = daemon.counted("dev");
    let began = Instant::now();
    daemon.cli(&["snapshot", "create", "--label", "team=infra", "dev", "ready"]).prints("ready\n");
    eprintln!("a snapshot of 512 MiB in {:?}", began.elapsed());
    until(|| daemon.counted("dev") > counted);
    daemon.said("dev", "echo > /run/end");
    assert_eq!(Ran::from(waits.wait_with_output().unwrap()).text(), "ended\n");
    daemon.cli(&["snapshot", "create", "dev", "ready"]).ends(1, &["there is a snapshot ready already"]);
    daemon.said("dev", "echo later > /root/disk");
    daemon.asks("dev", 2);

    // Another daemon knows of it.
    let daemon = daemon.kill();
    let listed = daemon.data("GET", "/v1/snapshots", Value::Null);
    let [ready] = &listed.as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!(
        (&ready["name"], &ready["sandbox"], &ready["mem"], &ready["labels"]),
        (&json!("ready"), &json!("dev"), &json!(512), &json!({ "team": "infra" }))
    );
    assert!(daemon.cli(&["snapshot", "ls"]).text().contains("ready"));

    let names: Vec<String> = (0..count("VOIDRUN_CLONES", 3)).map(|clone| format!("clone-{clone}")).collect();
    let began = Instant::now();
    let make = |name: &str| daemon.from_snapshot("ready", name)["id"].as_str().unwrap().to_owned();
    let ids: Vec<String> = thread::scope(|scope| {
        let make = &make;
        let made: Vec<_> = names.iter().map(|name| scope.spawn(move || make(name))).collect();
        made.into_iter().map(|made| made.join().unwrap()).collect()
    });
    eprintln!("{} clones in {:?}", names.len(), began.elapsed());
    // One command for much of it: where many run, each takes its time.
    let own = |name: &str| -> [String; 5] {
        let asked = now();
        let said = daemon.said(name, OWN);
        let lines: Vec<_> = said.lines().map(str::to_owned).collect();
        let Ok([clock, own @ ..]) = <[String; 6]>::try_from(lines) else { panic!("{said}") };
        let clock: f64 = clock.parse().unwrap();
        assert!(asked - 1.0 < clock && clock < now() + 1.0, "{clock} from {asked} to {}", now());
        own
    };
    let mut owned = vec![own("dev")];
    for (at, (name, id)) in names.iter().zip(&ids).enumerate() {
        let sandbox = daemon.data("GET", &format!("/v1/sandboxes/{name}"), Value::Null);
        assert_eq!(
            (&sandbox["fromSnapshot"], &sandbox["start"]["from"]),
            (&json!("ready"), &json!("snapshot"))
        );
        // Of a snapshot no labels are taken over, no variables, no ports.
        assert_eq!(sandbox["labels"], json!({}));
        owned.push(own(name));
        // What somebody has added by hand is kept.
        let kept = "hostname; cat /etc/hostname /root/disk /dev/shm/memory; grep -c by-hand /etc/hosts";
        let write = format!("{kept}; echo {name} > /root/own; sync");
        assert_eq!(daemon.said(name, &write), format!("{id}\n{id}\ndisk\nmemory\n1"));
        let before = daemon.counted(name);
        assert!(before >= counted);
        until(|| daemon.counted(name) > before);
        daemon.cli(&["exec", name, "python3", "-c", FETCH]).prints("");
        daemon.asks(name, 2);
        eprintln!("clone {} of {} goes on", at + 1, names.len());
    }
    names.iter().take(ASKED).for_each(|name| daemon.has_all_rows(name));
    for what in 0..owned[0].len() {
        assert!(differ(&owned.iter().map(|own| own[what].clone()).collect::<Vec<_>>()), "{owned:?}");
    }
    assert_eq!(daemon.said("dev", "hostname; cat /root/disk"), format!("{hostname}\nlater"));
    for name in &names {
        assert_eq!(daemon.said(name, "cat /root/own"), *name);
    }

    // What was made from it stays when it goes, and starts again with its disk.
    daemon.cli(&["snapshot", "rm", "ready"]).prints("ready\n");
    daemon.cli(&["create", "--from-snapshot", "ready"]).ends(1, &["there is no snapshot ready"]);
    daemon.cli(&["stop", "clone-0"]).ends(0, &[]);
    daemon.cli(&["start", "clone-0"]).ends(0, &[]);
    assert_eq!(
        daemon.said("clone-0", "cat /root/disk /root/own; hostname"),
        format!("disk\nclone-0\n{}", ids[0])
    );
    // And sleeps; and is a sandbox of which a snapshot can be taken.
    daemon.cli(&["sleep", "clone-1"]).ends(0, &[]);
    daemon.cli(&["wake", "clone-1"]).ends(0, &[]);
    daemon.cli(&["pause", "clone-1"]).ends(0, &[]);
    daemon.cli(&["snapshot", "create", "clone-1", "second"]).ends(0, &[]);
    assert_eq!(daemon.state("clone-1"), "paused");
    daemon.from_snapshot("second", "grandchild");
    assert_eq!(daemon.said("grandchild", "cat /root/disk /root/own"), "disk\nclone-1");
    let at = daemon.counted("grandchild");
    until(|| daemon.counted("grandchild") > at);
    let last = ["clone-2", "grandchild"].map(|name| daemon.said(name, "cat /etc/machine-id"));
    assert!(differ(&last));

    let all: Vec<&str> = names.iter().map(|name| &**name).chain(["dev", "grandchild"]).collect();
    daemon.cli(&[&["rm", "-f"][..], &all].concat()).ends(0, &[]);
    daemon.is_clean();
}

/// What is as in the snapshot that a sandbox began with is stored there alone, and stays for as long as somebody needs it.
#[test]
fn what_is_taken_of_a_clone_holds_what_is_its_own() {
    let daemon = Daemon::new();
    daemon.data("POST", "/v1/sandboxes", json!({ "image": "debian", "name": "dev", "mem": 256 }));
    let fill =
        |file: &str| format!("head -c 33554432 /dev/urandom > /dev/shm/{file}; sha256sum /dev/shm/{file}");
    let of_dev = daemon.said("dev", &fill("dev"));
    daemon.cli(&["snapshot", "create", "dev", "first"]).prints("first\n");
    daemon.from_snapshot("first", "clone");
    let of_clone = daemon.said("clone", &format!("rm /dev/shm/dev; {}", fill("clone")));
    daemon.from_snapshot("first", "other");
    daemon.said("other", "echo other > /dev/shm/other");
    daemon.cli(&["snapshot", "create", "clone", "second"]).prints("second\n");
    daemon.cli(&["snapshot", "create", "other", "third"]).prints("third\n");
    let snapshots = daemon.store.path().join("snapshots");
    let machine = |name: &str| snapshots.join(name).join("machine");
    let mib = |name: &str| machine(name).metadata().unwrap().len() >> 20;
    let sizes = ["first", "second", "third"].map(mib);
    eprintln!("MiB of a snapshot, of a clone with 32 others, of a clone: {sizes:?}");
    assert!(sizes[0] >= 32 && sizes[1] >= 32 && sizes[2] < 32 && sizes[2] < sizes[0] / 2, "{sizes:?}");

    // One sleeps, and what it began with goes.
    daemon.cli(&["sleep", "other"]).prints("other\n");
    let asleep =
        daemon.store.sandboxes().iter().find_map(|path| path.join("snapshot").metadata().ok()).unwrap();
    assert!(asleep.len() >> 20 < sizes[0] / 2, "{asleep:?}");
    daemon.cli(&["snapshot", "rm", "first"]).ends(0, &[]);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    let daemon = daemon.kill();
    daemon.cli(&["wake", "other"]).prints("other\n");
    let check = |name: &str, file: &str, sum: &str| {
        assert_eq!(daemon.said(name, &format!("sha256sum /dev/shm/{file}")), sum);
    };
    check("other", "dev", &of_dev);
    assert_eq!(daemon.said("other", "cat /dev/shm/other"), "other");
    // A clone of a clone's, and what is taken of that.
    daemon.from_snapshot("second", "again");
    check("again", "clone", &of_clone);
    daemon.said("again", "test ! -e /dev/shm/dev && echo again > /dev/shm/again");
    daemon.cli(&["snapshot", "create", "again", "fourth"]).prints("fourth\n");
    daemon.cli(&["rm", "-f", "clone", "other", "again"]).ends(0, &[]);
    daemon.cli(&["snapshot", "rm", "second"]).ends(0, &[]);
    daemon.from_snapshot("fourth", "last");
    check("last", "clone", &of_clone);
    assert_eq!(daemon.said("last", "cat /dev/shm/again"), "again");
    daemon.from_snapshot("third", "of-third");
    check("of-third", "dev", &of_dev);

    // Without what it is over it is of no use, and says so.
    std::fs::remove_file(machine("third").with_extension("base")).unwrap();
    daemon
        .cli(&["create", "--from-snapshot", "third", "--name", "none"])
        .ends(1, &["the snapshot that this one was taken over is not there"]);
    daemon.cli(&["rm", "-f", "last", "of-third"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn what_a_snapshot_cannot_be_is_told() {
    let daemon = Daemon::new();
    let none = json!({ "image": "debian", "mem": 256, "name": "none", "network": { "mode": "none" } });
    daemon.data("POST", "/v1/sandboxes", none);
    daemon.cli(&["snapshot", "create", "none", "ready"]).ends(0, &[]);
    daemon.cli(&["snapshot", "create", "none", "Not_A_Name"]).ends(1, &["is no name"]);
    let create = |more: Value| {
        let mut body = json!({ "fromSnapshot": "ready" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, wrong) in [
        (json!({ "cpu": 2 }), "is of a machine with 1 CPUs and 256 MiB"),
        (json!({ "mem": 512 }), "512 MiB of memory is asked for"),
        (json!({ "image": "code" }), "image: the snapshot"),
        (json!({ "network": { "mode": "public" } }), "without a network device"),
    ] {
        let detail = daemon.refuses(422, "POST", "/v1/sandboxes", create(more));
        assert!(detail.contains(wrong), "{detail}");
    }
    for name in ["nothing", "..", "%2e%2e%2fsandboxes", "A"] {
        daemon.refuses(404, "GET", &format!("/v1/snapshots/{name}"), Value::Null);
        daemon.refuses(404, "DELETE", &format!("/v1/snapshots/{name}"), Value::Null);
    }
    daemon.cli(&["images", "rm", "debian"]).ends(1, &["the sandbox none", "the snapshot ready"]);
    daemon.cli(&["rm", "-f", "none"]).ends(0, &[]);
    daemon.is_clean();

    // A bit of its state, one of its RAM, its end, its version, its disk: each is noticed, and nothing is left of the sandbox.
    let of = |name: &str| daemon.store.path().join("snapshots/ready").join(name);
    let open = |name: &str| std::fs::File::options().read(true).write(true).open(of(name)).unwrap();
    let flip = |name: &str, at: u64, bit: u8| {
        let (file, mut byte) = (open(name), [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ bit], at).unwrap();
    };
    let page = (0..).map(|page| (2 << 20) + page * 4096).find(|at| {
        let mut page = [0; 4096];
        open("machine").read_exact_at(&mut page, *at).unwrap();
        page != [0; 4096]
    });
    let length = open("machine").metadata().unwrap().len();
    for (name, at, bit, wrong) in [
        ("machine", page.unwrap(), 1, "the checksum of its RAM"),
        ("machine", length - 10, 1, "the checksum of its state"),
        ("machine", 0, 1, "is no snapshot"),
        ("machine", 8, 2, "is of format"),
        ("machine", 17, 4, "its header makes no sense"),
        ("disk.diff", 0, 1, "diff"),
    ] {
        flip(name, at, bit);
        daemon.cli(&["create", "--from-snapshot", "ready"]).ends(1, &[wrong]);
        daemon.is_clean();
        flip(name, at, bit);
    }
    open("machine").set_len(length - 1).unwrap();
    daemon.cli(&["create", "--from-snapshot", "ready"]).ends(1, &["are not its length"]);
    daemon.is_clean();
    open("machine").set_len(length).unwrap();
    daemon.cli(&["run", "--from-snapshot", "ready", "true"]).ends(125, &["the checksum of its state"]);
    daemon.is_clean();
}

#[test]
fn a_daemon_that_is_killed_at_it_leaves_a_whole_one_or_none() {
    let kills = count("VOIDRUN_DAEMON_KILLS", 3);
    let mut daemon = Daemon::new();
    daemon.create("dev");
    daemon.background("dev", COUNTER);
    until(|| daemon.cli(&["exec", "dev", "test", "-s", "/run/count"]).code == Some(0));
    let (mut taken, mut cloned) = (0, 0);
    for kill in 0..kills {
        eprintln!("kill {kill} of {kills}: {taken} snapshots taken all the same, {cloned} clones found");
        // What stands still stands still afterwards.
        let paused = kill % 2 == 1;
        if paused {
            daemon.cli(&["pause", "dev"]).ends(0, &[]);
        }
        // All along what it takes, which is about two seconds here.
        let moment = Duration::from_millis(20 + 2000 * kill as u64 / kills as u64);
        let request = daemon.send("POST", "/v1/sandboxes/dev/snapshots", "", &json!({ "name": "ready" }));
        thread::sleep(moment);
        daemon = daemon.kill();
        drop(request);
        assert_eq!(daemon.state("dev"), if paused { "paused" } else { "running" });
        if paused {
            daemon.cli(&["resume", "dev"]).ends(0, &[]);
        }
        let at = daemon.counted("dev");
        until(|| daemon.counted("dev") > at);
        let left = std::fs::read_dir(daemon.store.path().join("snapshots"));
        let left: Vec<_> = left.into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "ready"), "{left:?}");
        until(|| !daemon.store.sandboxes()[0].join("snapshot.new").exists());
        if left.is_empty() {
            daemon.cli(&["snapshot", "create", "dev", "ready"]).ends(0, &[]);
        } else {
            taken += 1;
        }
        let create = json!({ "fromSnapshot": "ready", "name": "clone" });
        let request = daemon.send("POST", "/v1/sandboxes", "", &create);
        thread::sleep(moment);
        daemon = daemon.kill();
        drop(request);
        if daemon.ask("GET", "/v1/sandboxes/clone", Value::Null).0 == 200 {
            // It comes up, or has ended, and can be removed.
            until(|| daemon.state("clone") != "creating");
            cloned += 1;
            // Whoever finds it does not take it for another.
            let id =
                daemon.data("GET", "/v1/sandboxes/clone", Value::Null)["id"].as_str().unwrap().to_owned();
            assert_eq!(daemon.said("clone", "hostname"), id);
            let at = daemon.counted("clone");
            until(|| daemon.counted("clone") > at);
            daemon.cli(&["rm", "-f", "clone"]).ends(0, &[]);
        }
        daemon.from_snapshot("ready", "clone");
        let at = daemon.counted("clone");
        until(|| daemon.counted("clone") > at);
        daemon.cli(&["rm", "-f", "clone"]).ends(0, &[]);
        daemon.cli(&["snapshot", "rm", "ready"]).ends(0, &[]);
    }
    eprintln!("{kills} kills: {taken} snapshots taken all the same, {cloned} clones found");
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
    assert!(daemon.store.machines().is_empty());
}

#[test]
fn the_jail_is_that_of_a_boot() {
    let daemon = Daemon::new();
    let id = daemon.create("dev");
    let cold = jail(&daemon, &id);
    daemon.cli(&["snapshot", "create", "dev", "ready"]).ends(0, &[]);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
    let id = daemon.from_snapshot("ready", "clone")["id"].as_str().unwrap().to_owned();
    assert_eq!(jail(&daemon, &id), cold);
    daemon.cli(&["rm", "-f", "clone"]).ends(0, &[]);
    daemon.is_clean();
}
