//! Files, by every route, from a client to the guest's disk and back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Daemon, until};

const FILES: &str = "/v1/sandboxes/dev/files";

/// A query parameter's value.
fn escape(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn at(route: &str, path: &str) -> String {
    format!("{FILES}{route}?path={}", escape(path))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same bytes every time, without a pattern that something could fold.
fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

impl Daemon {
    /// Status and the raw body, of a request with raw bytes.
    fn bytes(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // One that is refused is not read to its end.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(end + 4))
    }

    #[track_caller]
    fn upload(&self, path: &str, content: &[u8]) {
        let (status, answer) = self.bytes("POST", &at("/upload", path), content);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }

    #[track_caller]
    fn download(&self, path: &str) -> Vec<u8> {
        let (status, body) = self.bytes("GET", &at("/download", path), b"");
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        body
    }

    #[track_caller]
    fn shell(&self, line: &str) -> String {
        let data = self.data("POST", "/v1/sandboxes/dev/exec", json!({ "command": line }));
        assert_eq!(data["exitCode"], 0, "{data}");
        data["stdout"].as_str().unwrap().to_owned()
    }

    /// The kind of problem.
    #[track_caller]
    fn kind(&self, status: u16, method: &str, path: &str, named: &str) -> String {
        let (found, answer) = self.ask(method, path, Value::Null);
        assert_eq!(found, status, "{answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(named), "{detail}");
        answer["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
    }

    /// The daemon's memory, in KiB.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

#[test]
fn every_route() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let strange = "/srv/a b/ü €\n\t'\"&=#?%41\u{1f980}.txt";
    let content = b"\0\xff some\r\nbytes";
    daemon.upload(strange, content);
    assert_eq!(daemon.download(strange), content);
    assert_eq!(daemon.shell("cat /srv/*/*.txt | sha256sum | cut -c1-64").trim_end(), hash(content));
    let stat = daemon.data("GET", &at("/stat", strange), Value::Null);
    let expected = json!({
        "name": &strange[9..], "path": strange, "size": content.len(), "mode": "0644", "isDir": false, "type": "file",
        "uid": 0, "gid": 0,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&stat[name], value, "{name} of {stat}");
    }
    let list = daemon.data("GET", &at("", "/srv/a b"), Value::Null);
    assert_eq!((&list["files"][0]["path"], &list["truncated"]), (&json!(strange), &json!(false)));

    daemon.data("POST", &at("/create", "/srv/new"), json!({ "content": "text" }));
    daemon.data("POST", &format!("{}&content=a%20b", at("/create", "/srv/query")), Value::Null);
    assert_eq!(
        (daemon.download("/srv/new"), daemon.download("/srv/query")),
        (b"text".to_vec(), b"a b".to_vec())
    );
    daemon.data("POST", &at("/mkdir", "/srv/d/e/f"), Value::Null);
    daemon.data("POST", &at("/mkdir", "/srv/d/e/f"), Value::Null);
    daemon.data("POST", &format!("{FILES}/move?from=/srv/new&to=/srv/d/moved"), Value::Null);
    daemon.data("POST", &format!("{FILES}/copy?from=/srv/d&to=/srv/copy"), Value::Null);
    let changed = daemon.data("POST", &format!("{FILES}/chmod?path=/srv/copy/moved&mode=4750"), Value::Null);
    // What the published clients ask for.
    assert_eq!((&changed["exitCode"], &changed["stdout"]), (&json!(0), &json!("")));
    assert_eq!(
        daemon.shell("stat -c '%a %n' /srv/copy/*; ls /srv/d"),
        "755 /srv/copy/e\n4750 /srv/copy/moved\ne\nmoved\n"
    );
    let found = daemon.data("GET", &format!("{FILES}/search?path=/srv&pattern=mov*"), Value::Null);
    assert_eq!(found["stdout"], "/srv/copy/moved\n/srv/d/moved\n");
    assert_eq!(found["files"][0]["mode"], "4750");
    daemon.data("DELETE", &at("", "/srv/d"), Value::Null);
    daemon.shell("test ! -e /srv/d");
    // An upload keeps what it replaces as it is, but for its content.
    daemon.upload("/srv/copy/moved", b"new");
    assert_eq!(daemon.shell("stat -c %a /srv/copy/moved; cat /srv/copy/moved"), "4750\nnew");

    let missing = "/srv/missing\nfile";
    for (method, route) in
        [("GET", "/stat"), ("GET", "/download"), ("GET", ""), ("DELETE", ""), ("GET", "/archive")]
    {
        assert_eq!(
            daemon.kind(404, method, &at(route, missing), missing),
            "fileNotFound",
            "{method} {route}"
        );
    }
    assert_eq!(daemon.kind(409, "POST", &at("/create", "/srv/query"), "/srv/query"), "fileExists");
    assert_eq!(daemon.kind(409, "POST", &at("/mkdir", "/srv/query"), "/srv/query"), "fileExists");
    assert_eq!(
        daemon.kind(409, "POST", &format!("{FILES}/move?from=/srv/query&to=/srv/copy"), "/srv/copy"),
        "fileExists"
    );
    assert_eq!(daemon.kind(422, "GET", &at("/download", "/srv"), "/srv"), "isDirectory");
    assert_eq!(daemon.kind(422, "GET", &at("", "/srv/query"), "/srv/query"), "notDirectory");
    assert_eq!(
        daemon.kind(403, "POST", &format!("{FILES}/chmod?path=/proc/1/maps&mode=0"), "/proc/1/maps"),
        "fileDenied"
    );
    assert_eq!(daemon.kind(422, "GET", &at("/download", "/dev/zero"), "/dev/zero"), "invalid");
    assert_eq!(daemon.kind(400, "GET", &format!("{FILES}/stat"), "path"), "badRequest");
    assert_eq!(daemon.kind(400, "GET", &at("/stat", "relative"), "relative"), "badRequest");
    assert_eq!(daemon.kind(400, "GET", &at("/stat", "/a\0b"), "NUL"), "badRequest");
    assert_eq!(daemon.kind(422, "POST", &format!("{FILES}/chmod?path=/srv&mode=u%2Bx"), "u+x"), "invalid");
    assert_eq!(daemon.kind(501, "GET", &at("/du", "/"), "du"), "notImplemented");
    daemon.cli(&["pause", "dev"]).ends(0, &[]);
    assert_eq!(daemon.kind(409, "GET", &at("/stat", "/"), "paused"), "wrongState");
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_hundred_mebibytes() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let content = noise(100 << 20);
    let expected = hash(&content);
    daemon.upload("/srv/big", b"small");
    let before = daemon.memory();
    daemon.upload("/srv/big", &content);
    assert_eq!(daemon.shell("sha256sum < /srv/big | cut -c1-64").trim_end(), expected);
    assert_eq!(hash(&daemon.download("/srv/big")), expected);
    let grown = daemon.memory() - before;
    assert!(grown < 16 << 10, "{grown} KiB");

    // One that the disk does not take leaves the old file, and tells why while it is sent.
    daemon.shell("mkdir /mnt/small && mount -t tmpfs -o size=1m none /mnt/small && echo old > /mnt/small/f");
    let (status, answer) = daemon.bytes("POST", &at("/upload", "/mnt/small/f"), &content);
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(status, 507, "{answer}");
    assert!(answer.contains("/mnt/small/f") && answer.contains("noSpace"), "{answer}");
    assert_eq!(daemon.shell("cd /mnt/small; cat f; ls -A"), "old\nf\n");
}

/// The head of the answer to a download, with the length that it tells, and what comes behind it.
fn begin(daemon: &Daemon, path: &str) -> (Option<u64>, BufReader<UnixStream>) {
    let mut body = BufReader::new(daemon.send("GET", &at("/download", path), "", &Value::Null));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(body.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    (length.map(|length| length.parse().unwrap()), body)
}

#[test]
fn how_long_a_file_is() {
    let daemon = Daemon::new();
    daemon.create("dev");
    daemon.shell("cd /srv; : > empty; printf 12345 > small; truncate -s 200000 large; truncate -s 64M shrinks; cp -a shrinks grows");
    for (path, length) in [("empty", 0), ("small", 5), ("large", 200_000)] {
        let (told, mut body) = begin(&daemon, &format!("/srv/{path}"));
        assert_eq!(told, Some(length), "{path}");
        assert_eq!(body.read_to_end(&mut Vec::new()).unwrap() as u64, length, "{path}");
    }
    // What the kernel makes while it is read is longer, or shorter, than its size.
    for path in ["/proc/version", "/sys/block/vda/size"] {
        let Ok(text) = String::from_utf8(daemon.download(path)) else { panic!("{path}") };
        assert_eq!(text, daemon.shell(&format!("cat {path}")));
        assert_eq!(begin(&daemon, path).0, Some(text.len() as u64), "{path}");
    }

    let (told, mut body) = begin(&daemon, "/srv/shrinks");
    assert_eq!(told, Some(64 << 20));
    daemon.shell("truncate -s 32M /srv/shrinks");
    // The connection ends before what was told has come: no client takes that for the whole.
    let mut content = Vec::new();
    let _ = body.read_to_end(&mut content);
    assert!((1..=32 << 20).contains(&content.len()), "{}", content.len());

    let (told, mut body) = begin(&daemon, "/srv/grows");
    assert_eq!(told, Some(64 << 20));
    daemon.shell("truncate -s 96M /srv/grows");
    assert_eq!(body.read_to_end(&mut Vec::new()).unwrap(), 64 << 20);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let daemon = Daemon::new();
    daemon.create("dev");
    daemon.upload("/opt/up/f", b"old");
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let head =
        format!("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", at("/upload", "/opt/up/f"));
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[1; 200_000]).unwrap();
    until(|| daemon.shell("ls -A /opt/up | wc -l") == "2\n");
    drop(stream);
    until(|| daemon.shell("ls -A /opt/up | wc -l") == "1\n");
    assert_eq!(daemon.download("/opt/up/f"), b"old");

    // A download that nobody reads holds up nobody else, and ends with its client.
    daemon.shell("truncate -s 1G /opt/up/sparse");
    let mut stream = daemon.send("GET", &at("/download", "/opt/up/sparse"), "", &Value::Null);
    stream.read_exact(&mut [0; 100]).unwrap();
    assert_eq!(daemon.download("/opt/up/f"), b"old");
    let opened = "ls -l /proc/1/fd | grep -c sparse || true";
    assert_eq!(daemon.shell(opened), "1\n");
    drop(stream);
    until(|| daemon.shell(opened) == "0\n");
}

#[test]
fn what_happens_is_told() {
    let daemon = Daemon::new();
    daemon.create("dev");
    daemon.shell("mkdir -p /opt/w/d");
    let watch = format!("{FILES}/watch");
    let begin = || {
        let begun = daemon.data("POST", &watch, json!({ "path": "/opt/w", "recursive": true }));
        format!("{watch}/{}/stream", begun["sessionId"].as_str().unwrap())
    };
    let follow = |path: &str| {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        tungstenite::client(format!("ws://localhost{path}"), stream).map(|(socket, _)| socket)
    };
    let path = begin();
    // What happens before it is followed is told as well.
    daemon.upload("/opt/w/d/ä b", b"123");
    let mut socket = follow(&path).unwrap();
    let mut next = || serde_json::from_str::<Value>(socket.read().unwrap().to_text().unwrap()).unwrap();
    let event = next();
    assert_eq!(
        (&event["type"], &event["path"], &event["size"]),
        (&json!("created"), &json!("/opt/w/d/ä b"), &json!(3))
    );
    assert!(event["timestamp"].as_str().unwrap().ends_with('Z'), "{event}");
    daemon.data("POST", &format!("{FILES}/move?from=/opt/w/d&to=/opt/w/e"), Value::Null);
    let event = next();
    assert_eq!(
        (&event["type"], &event["path"], &event["oldPath"]),
        (&json!("renamed"), &json!("/opt/w/e"), &json!("/opt/w/d"))
    );
    // Each is followed once, and ends with its client.
    let watches = "grep -l '^inotify' /proc/1/fdinfo/* | wc -l";
    assert_eq!(daemon.kind(400, "GET", &path, "WebSocket"), "badRequest");
    let Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(again))) = follow(&path) else {
        panic!("followed twice");
    };
    let problem = String::from_utf8(again.body().clone().unwrap()).unwrap();
    assert_eq!((again.status().as_u16(), problem.contains("in the sandbox dev")), (404, true), "{problem}");
    assert_ne!(daemon.shell(watches), "0\n");
    socket.close(None).unwrap();
    while !socket.read().unwrap().is_close() {}
    until(|| daemon.shell(watches) == "0\n");

    let mut socket = follow(&begin()).unwrap();
    daemon.data("DELETE", &at("", "/opt/w"), Value::Null);
    while socket.read().is_ok_and(|message| !message.is_close()) {}
    for _ in 0..32 {
        daemon.data("POST", &watch, json!({ "path": "/opt" }));
    }
    let refused = daemon.refuses(429, "POST", &watch, json!({ "path": "/opt" }));
    assert!(refused.contains("the sandbox dev has 32 watches"), "{refused}");
    assert_eq!(daemon.kind(422, "POST", &watch, "path"), "invalid");
    let missing = daemon.refuses(404, "POST", &watch, json!({ "path": "/no/such" }));
    assert!(missing.contains("/no/such"), "{missing}");
    let refused = daemon.refuses(422, "POST", &watch, json!({ "path": "relative" }));
    assert!(refused.starts_with("path: "), "{refused}");
}
