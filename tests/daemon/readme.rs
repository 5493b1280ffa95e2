//! Each line of the README that uses curl, by curl itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Daemon;
use crate::readme_lines::{Line, lines, route_of, routes};
use crate::support::{Layout, layer};

/// What curl does in the lines stays as it is; beside that it says what it has asked for and what has come.
const CURL: &str = r#"curl() {
    local body; body=$(mktemp -p bodies)
    command curl --max-time 30 --write-out "%{stderr}@@ $body %{method} %{http_code} %{url_effective} %{content_type}\n" "$@" |
        tee "$body"
}
"#;

/// An answer that is not JSON throughout, or a stream, ends with this.
fn ends_well(kind: &str, body: &str) -> bool {
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    match kind.split(';').next().unwrap() {
        "application/json" => json(body).is_some_and(|answer| answer.is_object()),
        "application/problem+json" => json(body).is_some_and(|answer| answer["detail"].is_string()),
        "application/x-ndjson" => {
            let last = body.lines().last().and_then(json);
            last.is_some_and(|last| last["stream"] == "exit" || last["event"].is_string())
        }
        "text/event-stream" => {
            let last = body.trim_end().rsplit("\n\n").next().and_then(|event| event.split_once("\ndata:"));
            last.is_some_and(|(name, data)| name == "event:exit" && json(data).is_some())
        }
        "application/openmetrics-text" => body.ends_with("# EOF\n"),
        // Where it came is told with the line.
        "application/octet-stream" | "application/x-tar" => true,
        _ => false,
    }
}

/// Whether an answer is what is shown, but for how long it took.
fn is_shown(shown: &Value, found: &Value) -> bool {
    match (shown, found) {
        (Value::Object(shown), Value::Object(found)) => {
            shown.len() == found.len()
                && shown.iter().all(|(name, value)| {
                    found.get(name).is_some_and(|found| {
                        if name == "durationMs" { found.is_u64() } else { is_shown(value, found) }
                    })
                })
        }
        _ => shown == found,
    }
}

#[test]
fn every_line_does_what_it_says() {
    let daemon = Daemon::new();
    let dir = tempfile::tempdir().unwrap();
    symlink(daemon.socket(), daemon.store.path().join("voidrun/voidrun.sock")).unwrap();
    std::fs::create_dir(dir.path().join("bodies")).unwrap();
    std::fs::write(dir.path().join("data.bin"), vec![7; 100_000]).unwrap();
    let layout = Layout::of(&[layer(&[("etc/os-release", b"NAME=test\n")])]);
    std::fs::write(dir.path().join("app.oci.tar"), layout.tar()).unwrap();

    let lines = lines();
    let mut script = CURL.to_owned();
    for (number, line) in lines.iter().enumerate() {
        writeln!(script, "{}\necho '@@ {number}' >&2", line.command).unwrap();
    }
    let mut command = Command::new("bash");
    command.arg("-c").arg(&script).current_dir(dir.path()).stdin(Stdio::null());
    let ran = command.env("XDG_RUNTIME_DIR", daemon.store.path()).output().unwrap();
    let log = String::from_utf8(ran.stderr).unwrap();

    let (all, mut done, mut asked) = (routes(), BTreeSet::new(), Vec::<String>::new());
    for entry in log.lines().filter_map(|line| line.strip_prefix("@@ ")) {
        if let Ok(number) = entry.parse::<usize>() {
            let Line { command, answer } = &lines[number];
            let shown = serde_json::from_str::<Value>(answer);
            if let (Ok(shown), Some(body)) = (shown, asked.last()) {
                let found: Value = serde_json::from_str(body).unwrap();
                assert!(is_shown(&shown, &found), "{command}\n{found}");
            }
            asked.clear();
            continue;
        }
        let [file, method, status, url, kind @ ..] = &entry.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{entry}")
        };
        let body = String::from_utf8_lossy(&std::fs::read(dir.path().join(file)).unwrap()).into_owned();
        let path = url.strip_prefix("http://voidrun/v1").unwrap().split('?').next().unwrap();
        let route = route_of(&all, method, path).unwrap_or_else(|| panic!("{entry} is no route"));
        // There is no registry here. It is a failure that tells of itself.
        let good = match (*status, path) {
            // Nothing happens while it waits.
            ("200", "/events") => body.is_empty(),
            ("502", "/images/pull") => body.contains("python"),
            ("101", _) => route.1.contains("pty") || route.1.ends_with("/stream"),
            ("200" | "201" | "202", _) => ends_well(&kind.join(" "), &body),
            _ => false,
        };
        assert!(good, "{entry}\n{body}\n{log}");
        done.insert(route);
        asked.push(body);
    }
    let missing: Vec<_> = all.iter().filter(|route| !done.contains(route)).collect();
    assert!(missing.is_empty(), "{missing:?}\n{log}");
    let copy = std::fs::read(dir.path().join("copy.bin")).unwrap();
    assert!(copy == vec![7; 100_000]);
    daemon.is_clean();
}
