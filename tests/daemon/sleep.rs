//! Sandboxes whose machine is on the disk: what of it is as it was, and what a daemon finds that was killed in the middle.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmm::jail::Layers;

use crate::guests::{count, descriptors};
use crate::network::control;
use crate::{Daemon, until};

/// Counts in memory, for ever; a file shows how far it is.
pub(crate) const COUNTER: &str =
    "i=0; while :; do i=$((i + 1)); echo $i > /run/count.new; mv /run/count.new /run/count; sleep 0.02; done";

/// Writes to a database in one transaction after the other; a copy of it soon ends, since many of them would take all of a CPU.
const WRITER: &str = "import socket, sqlite3
db, first, n = sqlite3.connect('/root/db'), socket.gethostname(), 0
db.execute('create table t (n integer)')
while socket.gethostname() == first:
    with db: db.executemany('insert into t values (?)', [(n + i,) for i in range(50)])
    n += 50
    open('/run/rows', 'w').write(str(n))
";
/// Whether all of it is there.
const WHOLE: &str = "import sqlite3
db = sqlite3.connect('/root/db', timeout=60)
n, distinct, top = db.execute('select count(*), count(distinct n), max(n) from t').fetchone()
print(db.execute('pragma integrity_check').fetchone()[0], n == distinct == top + 1)
";
/// A shell that tells, when it is asked, where it is, what it holds, and the next line of a file that has no name any more.
const SHELL: &str =
    "mkfifo /run/ask; seq 9 > /root/open; exec 3< /root/open; rm /root/open; cd /var/tmp; held=value
said() { read -r line <&3; echo $PWD $held $line > /run/said.new; mv /run/said.new /run/said; }
while read -r _ < /run/ask; do said; done";

impl Daemon {
    /// Starts what goes on in a sandbox of the image `code`: a writer to a database, and a shell that is asked. Two commands.
    pub(crate) fn goes_on(&self, sandbox: &str) {
        self.background(sandbox, &format!("python3 - <<'END'\n{WRITER}END\n"));
        self.background(sandbox, SHELL);
        until(|| {
            self.cli(&["exec", sandbox, "test", "-s", "/run/rows", "-a", "-p", "/run/ask"]).code == Some(0)
        });
    }

    /// Asks the shell of [`Daemon::goes_on`], for the `time`th time.
    #[track_caller]
    pub(crate) fn asks(&self, sandbox: &str, time: usize) {
        let ask = "rm -f /run/said; echo > /run/ask; while ! cat /run/said 2>/dev/null; do sleep 0.02; done";
        self.cli(&["exec", sandbox, "sh", "-c", ask]).prints(&format!("/var/tmp value {time}\n"));
    }

    /// Nothing of the database of [`Daemon::goes_on`] is missing.
    #[track_caller]
    pub(crate) fn has_all_rows(&self, sandbox: &str) {
        self.cli(&["exec", sandbox, "python3", "-c", WHOLE]).prints("ok True\n");
    }

    /// A command in the background; its pid.
    pub(crate) fn background(&self, sandbox: &str, line: &str) -> u64 {
        let path = format!("/v1/sandboxes/{sandbox}/commands/run");
        self.data("POST", &path, json!({ "command": line }))["pid"].as_u64().unwrap()
    }

    pub(crate) fn counted(&self, sandbox: &str) -> u64 {
        self.cli(&["exec", sandbox, "cat", "/run/count"]).text().trim_end().parse().unwrap()
    }
}

/// What the kernel says of each thread of the one machine, and what that says of its jail.
pub(crate) fn jail(daemon: &Daemon, id: &str) -> (BTreeSet<String>, Layers) {
    let [pid] = daemon.store.machines()[..] else { panic!("one machine") };
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let wanted = [
        "Name",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
    ];
    let thread = |entry: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(entry.unwrap().path().join("status")).unwrap();
        let lines = status.lines().filter(|line| wanted.contains(&line.split(':').next().unwrap()));
        lines.collect::<Vec<_>>().join(", ")
    };
    (threads.map(thread).collect(), control(daemon, id).status().unwrap().jail)
}

pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn what_runs_goes_on_where_it_was() {
    let daemon = Daemon::new();
    let create = json!({
        "image": "code", "name": "dev", "mem": 512, "cpu": 2, "ports": [{ "port": 8000 }],
        "network": { "mode": "public", "deny": ["udp:*"] },
    });
    let port = daemon.data("POST", "/v1/sandboxes", create)["ports"][0]["hostPort"].as_u64().unwrap();
    let counter = daemon.background("dev", COUNTER);
    let server = "import http.server\n\
                  class H(http.server.BaseHTTPRequestHandler):\n    \
                      hits = 0\n    \
                      def do_GET(self):\n        \
                          H.hits += 1\n        \
                          self.send_response(200)\n        \
                          self.end_headers()\n        \
                          self.wfile.write(b'%d' % H.hits)\n    \
                      def log_message(self, *_): pass\n\
                  http.server.HTTPServer(('127.0.0.1', 8000), H).serve_forever()\n";
    daemon.background("dev", &format!("python3 - <<'END'\n{server}END\n"));
    daemon.goes_on("dev");
    let hits = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port as u16)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.rsplit("\r\n").next()?.parse::<u64>().ok()
    };
    until(|| hits().is_some());
    daemon.asks("dev", 1);
    // Somebody's stream ends, and what it was of goes on.
    let waits = daemon.store.command(&["exec", "dev", "sleep", "1000"]).spawn().unwrap();
    until(|| daemon.running("dev") == 5);

    let id = daemon.data("GET", "/v1/sandboxes/dev", Value::Null)["id"].as_str().unwrap().to_owned();
    let cold = jail(&daemon, &id);
    assert!(cold.0.len() > 4 && cold.0.iter().all(|thread| thread.contains("Seccomp:\t2")), "{cold:?}");
    let (before, asleep) = (daemon.counted("dev"), now());
    let served = hits().unwrap();
    let began = Instant::now();
    daemon.cli(&["sleep", "dev"]).prints("dev\n");
    let slept = began.elapsed();
    assert!(daemon.store.machines().is_empty());
    let ran = crate::Ran::from(waits.wait_with_output().unwrap());
    assert_ne!(ran.code, Some(0), "{ran:?}");
    let sandbox = daemon.data("GET", "/v1/sandboxes/dev", Value::Null);
    assert_eq!((&sandbox["state"], &sandbox["status"]), (&json!("sleeping"), &json!("snapshotted")));
    daemon.cli(&["exec", "dev", "true"]).ends(125, &["it is sleeping; `voidrun wake dev`"]);
    daemon.cli(&["sleep", "dev"]).ends(1, &["sleeping"]);
    daemon.cli(&["start", "dev"]).ends(1, &["sleeping"]);
    // Only what was touched is on the disk.
    let length = daemon.store.sandboxes()[0].join("snapshot").metadata().unwrap().len() >> 20;
    assert!(length < 300, "{length} MiB");

    // Another daemon knows of it, and time goes by.
    let daemon = daemon.kill();
    assert_eq!(daemon.state("dev"), "sleeping");
    thread::sleep(Duration::from_secs(3));
    let began = Instant::now();
    daemon.cli(&["wake", "dev"]).prints("dev\n");
    eprintln!("512 MiB: {length} MiB on the disk; asleep in {slept:?}, awake in {:?}", began.elapsed());
    assert_eq!(daemon.state("dev"), "running");
    assert_eq!(jail(&daemon, &id), cold);
    let clock: f64 = daemon.cli(&["exec", "dev", "date", "+%s.%N"]).text().trim_end().parse().unwrap();
    assert!((now() - clock).abs() < 5.0 && clock > asleep + 3.0, "{clock} at {}", now());
    let after = daemon.counted("dev");
    assert!(after >= before, "{before}, {after}");
    until(|| daemon.counted("dev") > after);
    assert_eq!(hits(), Some(served + 1));
    assert_eq!(daemon.running("dev"), 5);
    daemon.asks("dev", 2);
    let kill = daemon.ask("POST", "/v1/sandboxes/dev/commands/kill", json!({ "pid": counter })).1;
    assert_eq!(kill["success"], true, "{kill}");
    // The policy is what it was, and the database whole.
    assert_eq!(daemon.cli(&["network", "dev"]).text(), "public\ndeny udp:*\n");
    daemon.has_all_rows("dev");
    assert!(!daemon.store.sandboxes()[0].join("snapshot").exists());

    // From a pause, and to nothing.
    daemon.cli(&["pause", "dev"]).ends(0, &[]);
    daemon.cli(&["sleep", "dev"]).ends(0, &[]);
    daemon.cli(&["rm", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn each_of_four_vcpus_goes_on() {
    let daemon = Daemon::new();
    daemon.data("POST", "/v1/sandboxes", json!({ "image": "debian", "mem": 256, "cpu": 4, "name": "dev" }));
    for cpu in 0..4 {
        let counter = COUNTER.replace("count", &format!("count.{cpu}")).replace("sleep 0.02", "sleep 0.1");
        daemon.background("dev", &format!("taskset -p -c {cpu} $$; {counter}"));
    }
    let count = |sandbox: &str, cpu: usize| -> u64 {
        let counted = daemon.cli(&["exec", sandbox, "cat", &format!("/run/count.{cpu}")]);
        if counted.code == Some(0) { counted.text().trim_end().parse().unwrap() } else { 0 }
    };
    let go_on = |sandbox: &str, from: [u64; 4]| {
        for (cpu, from) in from.into_iter().enumerate() {
            let at = count(sandbox, cpu);
            assert!(at >= from, "{sandbox}, {cpu}: {at} after {from}");
            until(|| count(sandbox, cpu) > at);
        }
        [0, 1, 2, 3].map(|cpu| count(sandbox, cpu))
    };
    until(|| (0..4).all(|cpu| count("dev", cpu) > 0));
    let at = go_on("dev", [0; 4]);
    daemon.cli(&["snapshot", "create", "dev", "ready"]).ends(0, &[]);
    daemon.cli(&["sleep", "dev"]).ends(0, &[]);
    daemon.cli(&["create", "--from-snapshot", "ready", "--name", "clone"]).ends(0, &[]);
    go_on("clone", at);
    daemon.cli(&["wake", "dev"]).ends(0, &[]);
    go_on("dev", at);
    daemon.cli(&["exec", "clone", "nproc"]).prints("4\n");
    daemon.cli(&["rm", "-f", "dev", "clone"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_store_can_be_moved() {
    let daemon = Daemon::new();
    daemon.create("dev");
    daemon.background("dev", COUNTER);
    until(|| daemon.cli(&["exec", "dev", "test", "-s", "/run/count"]).code == Some(0));
    daemon.cli(&["exec", "dev", "sh", "-c", "echo disk > /root/file"]).prints("");
    daemon.cli(&["snapshot", "create", "dev", "running"]).ends(0, &[]);
    let counted = daemon.counted("dev");
    daemon.cli(&["sleep", "dev"]).ends(0, &[]);
    // Of one that sleeps as well, also as it is.
    daemon.cli(&["snapshot", "create", "dev", "asleep"]).ends(0, &[]);
    assert_eq!(daemon.state("dev"), "sleeping");
    let daemon = daemon.moved();
    for name in ["running", "asleep"] {
        daemon.cli(&["create", "--from-snapshot", name, "--name", name]).ends(0, &[]);
    }
    daemon.cli(&["wake", "dev"]).ends(0, &[]);
    for (name, from) in [("dev", counted), ("asleep", counted), ("running", 1)] {
        let at = daemon.counted(name);
        assert!(at >= from, "{name}: {at} after {from}");
        until(|| daemon.counted(name) > at);
        daemon.cli(&["exec", name, "cat", "/root/file"]).prints("disk\n");
    }
    daemon.cli(&["rm", "-f", "dev", "running", "asleep"]).ends(0, &[]);
    daemon.is_clean();
    daemon.cli(&["create", "--name", "another", "--memory", "256m", "debian"]).ends(0, &[]);
    let another = daemon.data("GET", "/v1/sandboxes/another", Value::Null);
    assert_eq!(another["start"]["from"], "warm");
    daemon.cli(&["rm", "-f", "another"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_job_goes_on_with_its_log() {
    let daemon = Daemon::new();
    let script = "i=0; while [ ! -e /end ]; do i=$((i + 1)); echo $i; sleep 0.1; done; exit 7";
    let run = ["run", "-d", "--name", "job", "--memory", "256m", "debian", "sh", "-c", script];
    daemon.cli(&run).ends(0, &[]);
    let lines = || daemon.cli(&["logs", "job"]).text().lines().count();
    until(|| lines() > 5);
    daemon.cli(&["sleep", "job"]).ends(0, &[]);
    let asleep = lines();
    daemon.cli(&["wake", "job"]).ends(0, &[]);
    until(|| lines() > asleep + 5);
    daemon.cli(&["exec", "job", "touch", "/end"]).prints("");
    until(|| daemon.state("job") == "stopped");
    let log = daemon.cli(&["logs", "job"]).text();
    // None is missing, and none is there twice.
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
    daemon.cli(&["rm", "job"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn what_cannot_be_woken_can_be_started() {
    let daemon = Daemon::new();
    daemon.create("dev");
    daemon.cli(&["exec", "dev", "sh", "-c", "echo kept > /root/file; sync"]).prints("");
    // A network that it has no device for is refused before, not when it wakes.
    let none = json!({ "image": "debian", "mem": 256, "name": "none", "network": { "mode": "none" } });
    daemon.data("POST", "/v1/sandboxes", none);
    daemon.cli(&["sleep", "none"]).ends(0, &[]);
    daemon.cli(&["network", "none", "--network", "public"]).ends(1, &["no device for one"]);
    daemon.cli(&["wake", "none"]).ends(0, &[]);
    daemon.cli(&["exec", "none", "true"]).prints("");
    daemon.cli(&["rm", "-f", "none"]).ends(0, &[]);

    daemon.cli(&["sleep", "dev"]).ends(0, &[]);
    let path = daemon.store.sandboxes()[0].join("snapshot");
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    // A bit of its RAM: the first page that is not zero.
    let at = (0..).map(|page| (2 << 20) + page * 4096).find(|at| {
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, *at).unwrap();
        page != [0; 4096]
    });
    let (at, mut byte) = (at.unwrap(), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    daemon.cli(&["wake", "dev"]).ends(1, &["the checksum of its RAM is another one", "`voidrun stop dev`"]);
    assert_eq!(daemon.state("dev"), "sleeping");
    file.write_all_at(&byte, at).unwrap();
    daemon.cli(&["wake", "dev"]).ends(0, &[]);

    daemon.cli(&["sleep", "dev"]).ends(0, &[]);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(5 << 20).unwrap();
    daemon.cli(&["wake", "dev"]).ends(1, &["are not its length"]);
    daemon.cli(&["stop", "dev"]).ends(0, &[]);
    assert!(!path.exists());
    daemon.cli(&["start", "dev"]).ends(0, &[]);
    daemon.cli(&["exec", "dev", "cat", "/root/file"]).prints("kept\n");
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_loses_nothing() {
    let kills = count("VOIDRUN_DAEMON_KILLS", 3);
    let mut daemon = Daemon::new();
    daemon.create("dev");
    daemon.background("dev", COUNTER);
    until(|| daemon.cli(&["exec", "dev", "test", "-s", "/run/count"]).code == Some(0));
    let mut before = daemon.counted("dev");
    let mut found = Vec::new();
    for kill in 0..kills {
        for verb in ["sleep", "wake"] {
            // All along what it takes, which is about two seconds here.
            let request = daemon.send("POST", &format!("/v1/sandboxes/dev/{verb}"), "", &Value::Null);
            thread::sleep(Duration::from_millis(20 + 2000 * kill as u64 / kills as u64));
            daemon = daemon.kill();
            drop(request);
            until(|| ["running", "sleeping"].contains(&&*daemon.state("dev")));
            let state = daemon.state("dev");
            found.push(state.clone());
            if state == "sleeping" {
                assert!(daemon.store.machines().is_empty());
                daemon.cli(&["wake", "dev"]).ends(0, &[]);
            }
            let after = daemon.counted("dev");
            assert!(after >= before, "{verb} {kill}: {before}, {after}");
            until(|| daemon.counted("dev") > after);
            before = after;
            let left = |name: &str| daemon.store.sandboxes()[0].join(name).exists();
            until(|| !left("snapshot.new") && !left("snapshot"));
            if verb == "sleep" {
                daemon.cli(&["sleep", "dev"]).ends(0, &[]);
            }
        }
    }
    eprintln!("found: {found:?}");
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn one_that_sleeps_by_itself_wakes_by_itself() {
    let daemon = Daemon::new();
    let create =
        ["create", "--name", "dev", "--memory", "256m", "--auto-sleep", "--idle-timeout", "2s", "debian"];
    daemon.cli(&create).ends(0, &[]);
    daemon.background("dev", COUNTER);
    // As long as somebody does something in it, it is awake.
    let mut busy = daemon.store.command(&["exec", "dev", "sleep", "6"]).spawn().unwrap();
    thread::sleep(Duration::from_secs(4));
    assert_eq!(daemon.state("dev"), "running");
    assert!(busy.wait().unwrap().success());
    let counted = daemon.counted("dev");
    until(|| daemon.state("dev") == "sleeping");
    until(|| daemon.store.machines().is_empty());
    // Whoever asks what it is does not wake it.
    daemon.cli(&["inspect", "dev"]).ends(0, &[]);
    assert_eq!(daemon.state("dev"), "sleeping");
    let daemon = daemon.kill();
    assert_eq!(daemon.state("dev"), "sleeping");
    // Of many at once each is served.
    let said = |line: &str| daemon.cli(&["exec", "dev", "sh", "-c", line]).text();
    thread::scope(|scope| {
        let ask = |number: usize| said(&format!("echo {number}")) == format!("{number}\n");
        let asked: Vec<_> = (0..5).map(|number| scope.spawn(move || ask(number))).collect();
        assert!(asked.into_iter().all(|asked| asked.join().unwrap()));
    });
    let at = daemon.counted("dev");
    assert!(at >= counted);
    until(|| daemon.counted("dev") > at);
    until(|| daemon.state("dev") == "sleeping");
    // So do files; and at whatever moment somebody comes, nothing is lost.
    daemon.raw("POST", "/v1/sandboxes/dev/files/upload?path=/root/file", "", &json!("content"));
    assert_eq!(said("cat /root/file"), "\"content\"");
    for moment in 0..count("VOIDRUN_DAEMON_KILLS", 3) as u64 {
        thread::sleep(Duration::from_millis(1900 + 40 * (moment % 30)));
        assert_eq!(said("echo here"), "here\n");
    }
    let refused = daemon.refuses(
        422,
        "POST",
        "/v1/sandboxes",
        json!({ "autoSleep": true, "ephemeral": true, "image": "debian" }),
    );
    assert!(refused.starts_with("autoSleep: "), "{refused}");
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn round_after_round_it_is_the_same() {
    let rounds = count("VOIDRUN_ROUNDS", 5);
    let daemon = Daemon::new();
    daemon.create("dev");
    let counter = daemon.background("dev", COUNTER);
    until(|| daemon.cli(&["exec", "dev", "test", "-s", "/run/count"]).code == Some(0));
    let on_disk = || daemon.store.sandboxes()[0].join("snapshot").metadata().unwrap().blocks() * 512 >> 20;
    let fds = || descriptors(daemon.process.id()).len();
    let (mut before, mut sizes, mut took) = (daemon.counted("dev"), Vec::new(), Vec::new());
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let mut held = (0, 0);
    for round in 0..rounds {
        eprintln!("round {round} of {rounds}: the daemon has {} KiB", resident());
        let began = Instant::now();
        daemon.cli(&["sleep", "dev"]).ends(0, &[]);
        sizes.push(on_disk());
        daemon.cli(&["wake", "dev"]).ends(0, &[]);
        took.push(began.elapsed().as_millis());
        let after = daemon.counted("dev");
        assert!(after >= before, "{round}: {before}, {after}");
        daemon.cli(&["snapshot", "create", "dev", "ready"]).ends(0, &[]);
        daemon.cli(&["create", "--from-snapshot", "ready", "--name", "clone"]).ends(0, &[]);
        before = daemon.counted("clone");
        assert!(before >= after, "{round}: {after}, {before}");
        daemon.cli(&["rm", "-f", "clone"]).ends(0, &[]);
        daemon.cli(&["snapshot", "rm", "ready"]).ends(0, &[]);
        until(|| daemon.store.sandboxes().len() == 1);
        // By the second it has opened what it keeps.
        match round {
            1 => held = (fds(), resident()),
            round if round > 1 => until(|| fds() <= held.0),
            _ => {}
        }
    }
    let grown = resident().saturating_sub(held.1);
    assert!(grown < 16 << 10, "the daemon takes {grown} KiB more");
    let asked = now();
    let clock: f64 = daemon.cli(&["exec", "dev", "date", "+%s.%N"]).text().trim_end().parse().unwrap();
    assert!(asked - 2.0 < clock && clock < now() + 2.0, "{clock} from {asked} to {}", now());
    // What the guest has read meanwhile is in its page cache.
    let (first, last) = (sizes[0], sizes[rounds - 1]);
    assert!(last < first * 3 / 2 + 8, "{sizes:?} MiB");
    eprintln!(
        "{rounds} rounds: {first} MiB, at last {last}; the first in {} ms, the last in {}; the daemon has grown by {grown} KiB",
        took[0],
        took[rounds - 1]
    );
    assert_eq!(daemon.store.machines().len(), 1);
    let kill = daemon.ask("POST", "/v1/sandboxes/dev/commands/kill", json!({ "pid": counter })).1;
    assert_eq!(kill["success"], true, "{kill}");
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}
