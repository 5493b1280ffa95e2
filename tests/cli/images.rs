//! Images over HTTP: the same store and the same pulls as those of `voidrun images`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::Site;
use crate::registry::Registry;
use crate::support::{Layout, digest, gzip, layer, noise};
use crate::two_layers;

fn site() -> Site {
    let site = Site::new();
    site.run(&["ps"]).ok();
    site
}

fn begin(site: &Site, path: &str, body: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    // What is refused early is not read to its end.
    let _ = stream.write_all(body);
    stream
}

/// The status, the type and the lines of an answer.
fn lines(site: &Site, path: &str, body: &[u8]) -> (u16, String, Vec<Value>) {
    let mut answer = String::new();
    begin(site, path, body).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "))
        .unwrap_or_else(|| panic!("{answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, kind.to_owned(), body.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn pull(site: &Site, reference: &str) -> (u16, String, Vec<Value>) {
    lines(site, "/v1/images/pull", json!({ "reference": reference }).to_string().as_bytes())
}

fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["event"].as_str().unwrap()).collect()
}

#[test]
fn pulled_shown_and_removed() {
    let site = site();
    let registry = Registry::start(Layout::of(&two_layers()));
    let reference = registry.reference();
    let (status, kind, told) = pull(&site, &reference);
    assert_eq!((status, kind.as_str()), (200, "application/x-ndjson"), "{told:?}");
    let kinds = kinds(&told);
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("resolved", "done"), "{told:?}");
    assert_eq!(told[0]["layers"], 2);
    assert!(kinds.contains(&"downloaded") && kinds.contains(&"converting"), "{told:?}");
    let done = &told[told.len() - 1];
    assert_eq!(done["converted"], true);
    // It is the image that the commands know.
    let image = site.voidrun.inspect(&reference);
    assert_eq!(done["image"]["derivation"], image["derivation"]);
    let (_, _, again) = pull(&site, &reference);
    assert_eq!(again.last().unwrap()["converted"], false, "{again:?}");

    let (status, listing) = site.ask("GET", "/v1/images", "");
    assert_eq!((status, &listing["data"][0]["reference"]), (200, &json!(reference)), "{listing}");
    assert_eq!(listing["damaged"], json!([]));
    for path in [format!("/v1/images/{reference}"), format!("/api/images/name/{reference}")] {
        let (status, shown) = site.ask("GET", &path, "");
        assert_eq!((status, &shown["data"]["digest"]), (200, &image["digest"]), "{shown}");
    }
    let pinned = format!("{}/tool@{}", registry.address, image["digest"].as_str().unwrap());
    assert_eq!(pull(&site, &pinned).2.last().unwrap()["event"], "done");
    assert_eq!(site.ask("GET", &format!("/v1/images/{pinned}"), "").0, 200);

    let (status, removed) = site.ask("DELETE", &format!("/v1/images/{reference}"), "");
    assert_eq!((status, &removed["data"]["removed"][0]["name"]), (200, &json!(reference)), "{removed}");
    assert_eq!(site.ask("DELETE", &format!("/v1/images/{pinned}"), "").0, 200);
    assert_eq!(site.voidrun.files("images"), Vec::<String>::new());
    for method in ["GET", "DELETE"] {
        let (status, problem) = site.ask(method, &format!("/v1/images/{reference}"), "");
        assert_eq!((status, &problem["type"]), (404, &json!("urn:voidrun:problem:imageNotFound")));
        assert!(problem["detail"].as_str().unwrap().contains(&reference), "{problem}");
    }
}

#[test]
fn imported() {
    let site = site();
    let archive = Layout::of(&[layer(&[("big", &noise(3 << 20, 7))])]).tar();
    for (body, name) in [(archive.clone(), "team/tool:v2"), (gzip(&archive), "pull")] {
        let (status, _, told) = lines(&site, &format!("/v1/images/import?name={name}"), &body);
        assert_eq!((status, told.last().unwrap()["event"].as_str()), (200, Some("done")), "{told:?}");
        assert_eq!(told.last().unwrap()["image"]["reference"], name);
    }
    assert_eq!(site.voidrun.names(), ["pull", "team/tool:v2"]);
    // Also one that is called as a route is.
    assert_eq!(site.ask("GET", "/v1/images/name/pull", "").0, 200);
    assert_eq!(site.ask("DELETE", "/v1/images/pull:latest", "").0, 200);

    // Half of one, from a client that goes.
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    let head =
        format!("POST /v1/images/import?name=half HTTP/1.0\r\nContent-Length: {}\r\n\r\n", archive.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&archive[..archive.len() / 2]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#""event":"error""#) && answer.contains("request body"), "{answer}");
    let end = Instant::now() + Duration::from_secs(30);
    while !site.voidrun.files("ingest").is_empty() {
        assert!(Instant::now() < end, "{:?}", site.voidrun.files("ingest"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(site.voidrun.names(), ["team/tool:v2"]);
}

#[test]
fn what_is_refused() {
    let site = site();
    let registry = Registry::start(Layout::of(&two_layers()));
    let absent = format!("{}/tool:v9", registry.address);
    let archive = Layout::of(&two_layers()).tar();
    let text = |reference: &str| json!({ "reference": reference }).to_string().into_bytes();
    for (path, body, status, word) in [
        ("pull", text(&absent), 422, absent.as_str()),
        ("pull", text("UPPER CASE"), 422, "reference: "),
        ("pull", text("oci:/etc"), 422, "images/import"),
        ("pull", b"{}".to_vec(), 422, "reference"),
        ("pull", br#"{"reference": "a", "platform": "what/is/this/now"}"#.to_vec(), 422, "platform: "),
        ("import", archive.clone(), 400, "name"),
        ("import?name=oci:v1", archive.clone(), 400, "oci:v1"),
        ("import?name=tool", noise(200_000, 9), 422, "archive"),
        ("import?name=tool", Vec::new(), 422, "OCI layout"),
    ] {
        let (found, kind, told) = lines(&site, &format!("/v1/images/{path}"), &body);
        assert_eq!((found, kind.as_str()), (status, "application/problem+json"), "{path}: {told:?}");
        assert!(told[0]["detail"].as_str().unwrap().contains(word), "{told:?}");
    }
    assert_eq!(site.ask("GET", "/v1/images/pull", "").0, 405);
    assert_eq!(site.ask("GET", "/v1/images/a%FFb", "").0, 400);

    // What fails when it is under way.
    let gone = digest(&gzip(&two_layers()[1]));
    let name = format!("blobs/sha256/{}", &gone[7..]);
    registry.layout.lock().unwrap().files.retain(|(file, _)| *file != name);
    let (status, _, told) = pull(&site, &registry.reference());
    let (first, last) = (&told[0], told.last().unwrap());
    assert_eq!(
        (status, first["event"].as_str(), last["event"].as_str()),
        (200, Some("resolved"), Some("error"))
    );
    assert!(last["detail"].as_str().unwrap().contains(&gone), "{last}");
    assert_eq!((last["status"].as_u64(), site.voidrun.names().len()), (Some(422), 0), "{last}");
}

#[test]
fn the_image_of_a_sandbox_is_pulled_first() {
    let site = site();
    let registry = Registry::start(Layout::of(&two_layers()));
    let reference = registry.reference();
    let create = |body: Value| site.ask("POST", "/v1/sandboxes", &body.to_string());
    let (status, problem) = create(json!({ "image": reference, "pull": "never" }));
    assert_eq!((status, &problem["type"]), (422, &json!("urn:voidrun:problem:imageNotFound")), "{problem}");
    assert_eq!(site.voidrun.names(), [""; 0]);
    // That there is no kernel here is found only then.
    assert_eq!(create(json!({ "image": reference })).0, 503);
    assert_eq!(site.voidrun.names(), [&*reference]);
    assert_eq!(create(json!({ "image": reference, "pull": "always" })).0, 503);
    let absent = format!("{}/tool:v9", registry.address);
    for pull in ["missing", "always"] {
        let (status, problem) = create(json!({ "image": absent, "pull": pull }));
        assert_eq!(
            (status, &problem["type"]),
            (422, &json!("urn:voidrun:problem:imageNotFound")),
            "{problem}"
        );
    }

    // What is here is enough for another size, whatever the registry has by now.
    *registry.layout.lock().unwrap() = Layout::of(&[]);
    let image = || site.ask("GET", &format!("/v1/images/{reference}"), "").1["data"].clone();
    let before = image();
    assert_eq!(create(json!({ "image": reference, "diskMB": 77 })).0, 503);
    let again = image();
    assert_eq!((&again["sizeBytes"], &again["digest"]), (&json!(77 << 20), &before["digest"]), "{again}");
    let (status, problem) = create(json!({ "image": reference, "diskMB": 78, "pull": "never" }));
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("never")), (422, true), "{problem}");
    assert_eq!(create(json!({ "image": reference, "pull": "always" })).0, 503);
    assert_ne!(image()["digest"], before["digest"]);
}

#[test]
fn public_urls() {
    let site = site();
    let (status, problem) = site.ask("GET", "/v1/sandboxes/absent/public-urls", "");
    assert_eq!((status, &problem["type"]), (404, &json!("urn:voidrun:problem:notFound")));
}

/// The registry never sends the rest to the first one: were that still there, the second one would wait for it.
#[test]
fn a_pull_ends_with_its_client() {
    let site = site();
    let big = layer(&[("big", &noise(4 << 20, 3))]);
    let registry = Registry::start(Layout::of(std::slice::from_ref(&big)));
    let stalled = registry.stall_at(&digest(&gzip(&big)));
    let body = json!({ "reference": registry.reference() }).to_string();
    let stream = begin(&site, "/v1/images/pull", body.as_bytes());
    stalled.recv().unwrap();
    let mut told = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(told.any(|line| line.contains("\"downloading\"")));
    drop(told);
    let (_, _, told) = pull(&site, &registry.reference());
    assert_eq!(told.last().unwrap()["event"], "done", "{told:?}");
    assert_eq!(site.voidrun.names(), [registry.reference()]);
}

#[test]
fn no_more_than_a_few_at_once() {
    let site = site();
    let stream = |name: u32| {
        let mut stream = UnixStream::connect(site.socket()).unwrap();
        let head = "HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n";
        write!(stream, "POST /v1/images/import?name=n{name} {head}").unwrap();
        let mut answer = [0; 25];
        stream.read_exact(&mut answer).unwrap();
        // It is asked for its archive: it has begun.
        assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream
    };
    let streams: Vec<UnixStream> = (0..4).map(stream).collect();
    let (status, _, told) = pull(&site, "localhost:1/tool");
    assert_eq!(status, 429, "{told:?}");
    assert!(told[0]["detail"].as_str().unwrap().contains("4 pulls"), "{told:?}");
    drop(streams);
}

#[test]
fn an_image_that_is_in_use_stays() {
    let site = site();
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    site.run(&["images", "pull", &source]).ok();
    // As a sandbox has it in its record, which is all that the store reads of one.
    let sandbox = site.voidrun.store().join("sandboxes/0123456789ab");
    let derivation = site.voidrun.inspect("tool")["derivation"].clone();
    std::fs::create_dir_all(&sandbox).unwrap();
    std::fs::write(
        sandbox.join("spec.json"),
        json!({ "image": derivation, "name": "web", "ephemeral": false }).to_string(),
    )
    .unwrap();
    let (status, problem) = site.ask("DELETE", "/v1/images/tool", "");
    assert_eq!((status, &problem["type"]), (409, &json!("urn:voidrun:problem:imageInUse")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("tool") && detail.contains("web"), "{detail}");
    site.run(&["images", "rm", "tool", "--json"]).fails(1, &["web", "conflict"]);
    // By another name it can be had again.
    site.run(&["images", "pull", &source, "--name", "other"]).ok();
    assert_eq!(site.ask("DELETE", "/v1/images/tool", "").0, 200);
    assert_eq!(site.voidrun.names(), ["other"]);
    std::fs::remove_dir_all(&sandbox).unwrap();
    assert_eq!(site.ask("DELETE", "/v1/images/other", "").0, 200);
    assert_eq!(site.voidrun.files("images"), Vec::<String>::new());
}
