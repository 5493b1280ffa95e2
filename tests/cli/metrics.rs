//! `/metrics`, as far as it goes without a machine that runs.
#![allow(clippy::float_cmp, reason = "they are counts")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::daemon::Site;
use crate::support::{Layout, Ran};
use crate::two_layers;

/// The samples by name and labels, of a text that is well-formed.
fn scrape(site: &Site, path: &str) -> BTreeMap<String, f64> {
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_ascii_lowercase().contains("content-type: application/openmetrics-text"), "{head}");
    let mut families: Vec<&str> = Vec::new();
    let mut samples = BTreeMap::new();
    for line in text.strip_suffix("# EOF\n").unwrap().lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let [kind, family, what] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            assert!(["HELP", "TYPE", "UNIT"].contains(&kind) && !what.is_empty(), "{line}");
            families.push(family);
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("voidrun_") && name.starts_with(families.last().unwrap()), "{line}");
        assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line}");
    }
    samples
}

#[test]
fn what_is_counted() {
    let site = Site::new();
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    let kernel = site.voidrun.file("kernel", b"this is no kernel");
    site.voidrun.configure(&format!("kernel = '{kernel}'\n"));
    site.run(&["images", "pull", &source]).ok();
    site.run(&["ps"]).ok();
    let before = scrape(&site, "/metrics");
    let zero = [
        r#"voidrun_boots_total{result="failed"}"#,
        r#"voidrun_boots_total{result="ok"}"#,
        r#"voidrun_execs_total{result="ok"}"#,
        "voidrun_boot_duration_seconds_count",
        "voidrun_exec_start_duration_seconds_count",
        r#"voidrun_guest_traffic_bytes_total{stream="files",direction="to_guest"}"#,
        r#"voidrun_sandboxes{state="running"}"#,
        r#"voidrun_sandboxes{state="lost"}"#,
        r#"voidrun_http_requests_total{status="4xx"}"#,
        "voidrun_images_pulled_total",
        r#"voidrun_network_bytes_total{direction="to_guest"}"#,
        "voidrun_network_connections_total",
        "voidrun_network_denials_total",
        "voidrun_network_dropped_packets_total",
    ];
    for name in zero {
        assert_eq!(before.get(name), Some(&0.0), "{name}: {before:?}");
    }

    for name in ["one", "two"] {
        Ran::from(site.command(&["create", "--name", name, "tool"]).output().unwrap())
            .fails(1, &["cannot start the sandbox"]);
    }
    for path in ["/v1/sandboxes/absent", "/nothing"] {
        assert_eq!(site.ask("GET", path, "").0, 404);
    }
    // The one at the root is that of both trees.
    let after = scrape(&site, "/v1/metrics");
    assert_eq!(before.keys().collect::<Vec<_>>(), scrape(&site, "/api/metrics").keys().collect::<Vec<_>>());
    let grown: BTreeMap<&str, f64> = after
        .iter()
        .map(|(name, value)| (name.as_str(), value - before[name]))
        .filter(|(_, more)| *more > 0.0)
        .collect();
    let answered = r#"voidrun_http_requests_total{status="2xx"}"#;
    let expected = BTreeMap::from([
        (r#"voidrun_boots_total{result="failed"}"#, 2.0),
        (r#"voidrun_http_requests_total{status="4xx"}"#, 2.0),
        // No boot is why they were answered so.
        (r#"voidrun_http_requests_total{status="5xx"}"#, 2.0),
        // That of before was not answered yet when it was counted.
        (answered, grown[answered]),
    ]);
    assert_eq!(grown, expected);
    assert!(grown[answered] >= 1.0);
}

#[test]
fn images_are_counted() {
    let site = Site::new();
    site.run(&["ps"]).ok();
    let path = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    let directory = path.strip_prefix("oci:").unwrap().split(':').next().unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all("", directory).unwrap();
    let archive = archive.into_inner().unwrap();
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    write!(stream, "POST /v1/images/import?name=tool HTTP/1.0\r\nContent-Length: {}\r\n\r\n", archive.len())
        .unwrap();
    stream.write_all(&archive).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#"{"event":"done""#), "{answer}");
    assert_eq!(scrape(&site, "/metrics")["voidrun_images_pulled_total"], 1.0);
}
