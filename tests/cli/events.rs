//! What happens to sandboxes, as it is told; as far as it goes without a machine that runs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::daemon::Site;
use crate::support::{Layout, Ran};
use crate::two_layers;

/// A daemon whose sandboxes cannot start, and its image `tool`.
fn site() -> Site {
    let site = Site::new();
    let source = site.voidrun.layout("tool", &Layout::of(&two_layers()));
    site.run(&["images", "pull", &source]).ok();
    let kernel = site.voidrun.file("kernel", b"this is no kernel");
    site.voidrun.configure(&format!("kernel = '{kernel}'\n"));
    site.run(&["ps"]).ok();
    site
}

/// The status of the answer, which comes when it is followed, and its body.
fn follow(site: &Site, query: &str, accept: &str) -> (String, BufReader<UnixStream>) {
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET /v1/events{query} HTTP/1.0\r\nAccept: {accept}\r\n\r\n").unwrap();
    let mut body = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(body.read_line(&mut head).unwrap() > 0, "{head}");
    }
    (head.split(' ').nth(1).unwrap().to_owned(), body)
}

fn create(site: &Site, name: &str, label: &str) {
    site.run(&["create", "--name", name, "--label", label, "tool"]).fails(1, &["cannot start the sandbox"]);
}

#[test]
fn followers_are_told_what_they_want_to_know() {
    let site = site();
    let queries = ["", "?sandbox=one", "?labels=team=b", "?label=team=b&sandbox=one", "?sandbox=absent"];
    let mut lines = queries.map(|query| follow(&site, query, "*/*").1);
    let (_, mut events) = follow(&site, "", "text/event-stream");
    create(&site, "one", "team=a");
    create(&site, "two", "team=b");

    let mut all = String::new();
    for _ in 0..6 {
        lines[0].read_line(&mut all).unwrap();
    }
    let all: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (half, name, team) in [(&all[..3], "one", "a"), (&all[3..], "two", "b")] {
        let kinds: Vec<&Value> = half.iter().map(|event| &event["kind"]).collect();
        assert_eq!(kinds, ["created", "failed", "removed"]);
        for event in half {
            assert_eq!((&event["name"], &event["labels"]), (&json!(name), &json!({ "team": team })));
            assert_eq!((&event["id"], &event["image"]), (&half[0]["id"], &half[0]["image"]));
            humantime::parse_rfc3339(event["time"].as_str().unwrap()).unwrap();
        }
        let reason = half[1]["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("cannot start the sandbox {name} from tool: ")), "{reason}");
        assert_eq!((&half[0]["reason"], &half[2]["reason"]), (&Value::Null, &Value::Null));
    }

    // Each of them ends with the daemon, which they do not hold up, and has told no more than was wanted.
    let began = Instant::now();
    site.end(Signal::TERM);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for (body, expected) in lines.iter_mut().zip([&all[6..], &all[..3], &all[3..], &[], &[]]) {
        let mut rest = String::new();
        body.read_to_string(&mut rest).unwrap();
        let rest: Vec<Value> = rest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rest, expected);
    }
    let mut text = String::new();
    events.read_to_string(&mut text).unwrap();
    let events: Vec<(&str, Value)> = text
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("event:").unwrap().split_once("\ndata:").unwrap())
        .map(|(kind, data)| (kind, serde_json::from_str(data).unwrap()))
        .collect();
    let expected: Vec<(&str, Value)> =
        all.iter().map(|event| (event["kind"].as_str().unwrap(), event.clone())).collect();
    assert_eq!(events, expected);
}

#[test]
fn followers_are_bounded_and_what_is_wrong_is_refused() {
    let site = site();
    let mut followers: Vec<_> = (0..64).map(|_| follow(&site, "", "*/*")).collect();
    assert!(followers.iter().all(|(status, _)| status == "200"));
    let (status, answer) = site.ask("GET", "/v1/events", "");
    assert_eq!((status, &answer["type"]), (429, &json!("urn:voidrun:problem:limit")), "{answer}");
    site.run(&["events"]).fails(1, &["64 clients follow the events already"]);
    // Who goes is noticed without an event.
    followers.pop();
    let end = Instant::now() + Duration::from_secs(30);
    while follow(&site, "", "*/*").0 != "200" {
        assert!(Instant::now() < end);
    }
    let (status, answer) = site.ask("GET", "/v1/events?sandbox=", "");
    assert_eq!(
        (status, answer["detail"].as_str().unwrap().starts_with("sandbox: ")),
        (422, true),
        "{answer}"
    );
    let (status, answer) = site.ask("GET", "/v1/events?labels=x", "");
    assert_eq!((status, answer["detail"].as_str().unwrap().starts_with("labels: ")), (422, true), "{answer}");
}

#[test]
fn the_command() {
    let site = site();
    let spawn = |arguments: &[&str]| {
        let arguments = [&["events"], arguments].concat();
        let mut command = site.command(&arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        (child, output)
    };
    let (people, mut shown) = spawn(&[]);
    let (program, mut json) = spawn(&["--json", "--label", "team=a", "one"]);
    // When they follow is not told: there is something to tell until they do.
    let (sender, first) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut line, mut object) = (String::new(), String::new());
        shown.read_line(&mut line).unwrap();
        json.read_line(&mut object).unwrap();
        sender.send((line, object, shown, json)).unwrap();
    });
    let end = Instant::now() + Duration::from_mins(1);
    let (line, object, _shown, _json) = loop {
        create(&site, "one", "team=a");
        if let Ok(lines) = first.try_recv() {
            break lines;
        }
        assert!(Instant::now() < end, "nothing was told");
    };
    let object: Value = serde_json::from_str(&object).unwrap();
    assert_eq!((&object["name"], &object["labels"]["team"]), (&json!("one"), &json!("a")));
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[2].len(), words[3]), (12, "one"), "{line}");

    // Ctrl-C is no failure to be told of; the daemon's end is.
    kill_process(Pid::from_child(&people), Signal::INT).unwrap();
    let people = Ran::from(people.wait_with_output().unwrap());
    assert_eq!((people.code, &*people.stderr), (Some(130), ""));
    site.end(Signal::TERM);
    Ran::from(program.wait_with_output().unwrap()).fails(1, &["the daemon has ended"]);
}
