//! What the host is short of: room on its disk, descriptors, and files that all have open together.

use std::fs::{DirEntry, File};
use std::io::Write as _;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::guests::{Store, descriptors};
use crate::{Daemon, PATIENCE, answer, send_by, until};

impl Daemon {
    /// Makes a sandbox and removes it, or fails; the answer's status and detail.
    #[track_caller]
    fn tries_to_create(&self) -> (u16, String) {
        let (status, answer) = self.ask("POST", "/v1/sandboxes", wanted());
        self.is_told(status, &answer)
    }

    /// Of a try that has got `answer`.
    #[track_caller]
    fn is_told(&self, status: u16, answer: &Value) -> (u16, String) {
        if status < 300 {
            self.data("DELETE", "/v1/sandboxes/new", Value::Null);
        }
        self.refuses(404, "GET", "/v1/sandboxes/new", Value::Null);
        (status, answer["detail"].as_str().unwrap_or_default().to_owned())
    }

    #[track_caller]
    fn has_alone(&self, sandboxes: usize) {
        until(|| self.store.sandboxes().len() == sandboxes && self.store.machines().len() == sandboxes);
    }
}

fn wanted() -> Value {
    json!({ "name": "new", "image": "debian", "mem": 256 })
}

#[test]
fn room_on_the_disk() {
    let daemon = Daemon::on(Store::small(64));
    daemon.create("dev");
    daemon.create("other");
    let path = daemon.store.path().join("fill");
    let mut fill = File::create(&path).unwrap();
    while fill.write_all(&[1; 4096]).is_ok() {}
    let pages = fill.metadata().unwrap().len() / 4096;
    // No room for the record, for the machine's last words, for the disk's first page, for what the guest writes first.
    for free in [0, 3, 5, 6] {
        fill.set_len((pages - free) * 4096).unwrap();
        let (status, said) = daemon.tries_to_create();
        println!("{free} pages free: {status} {said}");
        // The guest is not told why its disk fails.
        let told = ["No space left on device", "I/O error"].iter().any(|why| said.contains(why));
        assert!([500, 507].contains(&status) && told, "{status} {said}");
        daemon.has_alone(2);
    }
    while fill.write_all(&[1; 4096]).is_ok() {}

    let write = json!({ "command": "dd if=/dev/zero of=/root/big bs=1M count=64 conv=fsync", "timeout": 60 });
    let written = daemon.data("POST", "/v1/sandboxes/dev/exec", write);
    let said = written["stderr"].as_str().unwrap();
    // The second where the guest's file system has made itself read-only before.
    let told = ["Input/output error", "Read-only file system"].iter().any(|why| said.contains(why));
    assert!(written["exitCode"] == 1 && told, "{written}");
    // What the guest's own file system makes of it is its affair: the machine answers, and others are not touched by it.
    assert_eq!((daemon.state("dev").as_str(), daemon.running("dev")), ("running", 0));
    daemon.cli(&["exec", "other", "echo", "fine"]).prints("fine\n");
    // A name that cannot be written down is not taken.
    let detail = daemon.refuses(507, "PATCH", "/v1/sandboxes/dev", json!({ "name": "another" }));
    assert!(detail.contains("spec.json") && detail.contains("No space left"), "{detail}");
    assert_eq!(daemon.state("dev"), "running");

    // What is removed makes room, and needs none.
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    until(|| daemon.store.sandboxes().len() == 1);
    drop(fill);
    std::fs::remove_file(path).unwrap();
    assert_eq!(daemon.tries_to_create(), (201, String::new()));
    daemon.cli(&["rm", "-f", "other"]).prints("other\n");
    daemon.is_clean();
}

fn with_descriptors(limit: usize) -> Daemon {
    let store = Store::new();
    let script = format!("ulimit -n {limit} && exec \"$0\" daemon");
    let command = store.command_of("/bin/sh", &["-c", &script, env!("CARGO_BIN_EXE_voidrun")]);
    Daemon::by(command, store)
}

#[test]
fn descriptors_of_the_daemon() {
    const LIMIT: usize = 96;
    // Too few for any machine.
    let (status, said) = with_descriptors(40).tries_to_create();
    assert!(
        status == 503 && said.contains("Too many open files") && said.contains("ulimit"),
        "{status} {said}"
    );

    let daemon = with_descriptors(LIMIT);
    daemon.create("dev");
    daemon.cli(&["exec", "dev", "true"]).prints("");
    let open = || descriptors(daemon.process.id()).len();
    until(|| descriptors(daemon.process.id()).iter().filter(|one| one.starts_with("socket:")).count() < 8);
    let idle = open();
    // What is released in the background may hold one for a moment.
    let held = |count: usize| -> Vec<UnixStream> {
        let clients = (0..count).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
        until(|| open() == idle + count);
        clients
    };
    println!("{idle} descriptors of {LIMIT}");
    // One is the request's own.
    for free in [0, 1, 2, 3, 5, 8, 12, 16] {
        let clients = held(LIMIT - idle - 1 - free);
        let (status, said) = daemon.tries_to_create();
        println!("{free} free: {status} {said}");
        assert!(status == 201 || status == 503 && said.contains("Too many open files"), "{status} {said}");
        if free == 0 {
            let command = json!({ "command": "true" });
            let said = daemon.refuses(503, "POST", "/v1/sandboxes/dev/exec", command);
            assert!(said.contains("the sandbox dev") && said.contains("Too many open files"), "{said}");
        }
        drop(clients);
        until(|| open() == idle);
    }
    // Nothing half-made is left when there are some again.
    daemon.has_alone(1);
    // Where there is none for it, a client waits until there is one.
    let mut clients = held(LIMIT - idle);
    let waits = daemon.send("GET", "/v1/sandboxes/dev", "", &Value::Null);
    waits.set_nonblocking(true).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let nothing = std::io::Read::read(&mut &waits, &mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    clients.truncate(1);
    waits.set_nonblocking(false).unwrap();
    assert_eq!(answer(waits).0, 200);
    drop(clients);
    assert_eq!(daemon.tries_to_create(), (201, String::new()));
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    daemon.is_clean();
}

/// How many files all programs of the machine may have open, as it was until this is dropped.
struct FileMax {
    before: String,
}

impl FileMax {
    const PATH: &str = "/proc/sys/fs/file-max";

    /// None where it is not the lab's: a limit of a machine that others use is no test's to change. No other machine has its ports.
    fn of_the_lab() -> Option<Self> {
        let ports = std::fs::read_dir("/sys/class/virtio-ports").into_iter().flatten();
        let name =
            |port: std::io::Result<DirEntry>| std::fs::read_to_string(port.unwrap().path().join("name"));
        let in_the_lab = ports.map(name).any(|name| name.is_ok_and(|name| name.trim_end() == "lab.exit"));
        in_the_lab.then(|| Self { before: std::fs::read_to_string(Self::PATH).unwrap() })
    }

    /// Does `work` while there may be so many more than there are, or fewer.
    fn with_more<T>(&self, more: i64, work: impl FnOnce() -> T) -> T {
        let files = std::fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
        let files: i64 = files.split_whitespace().next().unwrap().parse().unwrap();
        std::fs::write(Self::PATH, (files + more).to_string()).unwrap();
        let done = work();
        std::fs::write(Self::PATH, &self.before).unwrap();
        done
    }
}

impl Drop for FileMax {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, &self.before);
    }
}

/// In which the kernel counts on each processor, before it looks at the sum.
const BATCH: i64 = 64;

#[test]
fn files_of_the_whole_machine() {
    let Some(limit) = FileMax::of_the_lab() else {
        println!("not tested: this is not the lab, and fs.file-max is a limit of everybody here");
        return;
    };
    // Whoever has that capability is exempt, as this test is.
    let store = Store::new();
    let arguments = ["--bounding-set=-sys_admin", env!("CARGO_BIN_EXE_voidrun"), "daemon"];
    let command = store.command_of("/usr/bin/setpriv", &arguments);
    let daemon = Daemon::by(command, store);
    daemon.create("dev");
    daemon.cli(&["exec", "dev", "true"]).prints("");
    let open = || descriptors(daemon.process.id()).len();
    until(|| descriptors(daemon.process.id()).iter().filter(|one| one.starts_with("socket:")).count() < 8);
    let idle = open();
    // A connection that the daemon has, so that it can be asked.
    let connected = || {
        until(|| open() == idle);
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        until(|| open() == idle + 1);
        stream
    };
    let ask_by = |stream: UnixStream, path: &str, body: &Value| {
        let (status, answer) = answer(send_by(stream, "POST", path, "", body));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        (status, answer)
    };

    let mut made = 0;
    // How far it comes depends on how full its processor's count is: other files that are open shift that.
    let shifted = (0..32).step_by(4).map(|others| (1, others));
    for (more, others) in [(-BATCH, 0), (0, 0)].into_iter().chain(shifted).chain([(BATCH, 0)]) {
        let _others: Vec<File> = (0..others).map(|_| File::open("/dev/null").unwrap()).collect();
        let stream = connected();
        let (status, told) = limit.with_more(more, || ask_by(stream, "/v1/sandboxes", &wanted()));
        let (status, said) = daemon.is_told(status, &told);
        println!("{more} more, {others} others: {status} {said}");
        // Those without a 503 are the machine's own words, or its loader's (dlopen(3)) where it has one.
        let told = ["Too many open files in system", "Error 23"].iter().any(|why| said.contains(why));
        let short = status == 503 && said.contains("(os error 23)") && said.contains("fs.file-max");
        assert!(!said.contains("ulimit"), "{said}");
        assert!(status == 201 || short || status == 500 && told, "{status} {said}");
        assert!(more > -BATCH || short, "{status} {said}");
        made += u32::from(status == 201);
        daemon.has_alone(1);
    }
    assert!(made > 0);
    let stream = connected();
    let command = json!({ "command": "true" });
    let (status, told) = limit.with_more(-BATCH, || ask_by(stream, "/v1/sandboxes/dev/exec", &command));
    let said = told["detail"].as_str().unwrap_or_default();
    assert!(
        status == 503 && said.contains("the sandbox dev") && said.contains("fs.file-max"),
        "{status} {told}"
    );
    // A client whom the daemon has no file for waits until there is one.
    let waits = limit.with_more(-BATCH, || {
        let waits = daemon.send("GET", "/v1/sandboxes/dev", "", &Value::Null);
        waits.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let nothing = std::io::Read::read(&mut &waits, &mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        waits
    });
    waits.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(answer(waits).0, 200);

    // All goes on.
    assert_eq!(daemon.tries_to_create(), (201, String::new()));
    daemon.cli(&["exec", "dev", "true"]).prints("");
    daemon.cli(&["rm", "-f", "dev"]).prints("dev\n");
    daemon.is_clean();
}
