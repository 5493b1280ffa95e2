//! A daemon of one release, and commands of a newer one.

use serde_json::{Value, json};

use crate::guests::Store;
use crate::patched::program_of;
use crate::{Ran, answer, send, socket_of, until};

/// The daemons that commands have started go with their store, also after a failure.
struct Reset<'a>(&'a Store);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        let _ = self.0.command(&["reset", "--yes"]).output();
    }
}

#[test]
fn sandboxes_outlive_an_older_daemon() {
    let store = Store::new();
    let _reset = Reset(&store);
    let newer = program_of(store.path(), "9.9.9");
    let ours = |arguments: &[&str]| Ran::from(store.command(arguments).output().unwrap());
    let by_newer = |arguments: &[&str]| Ran::from(store.command_of(&newer, arguments).output().unwrap());
    let ask = |method: &str, path: &str, body: Value| -> Value {
        let (status, text) = answer(send(&socket_of(&store).unwrap(), method, path, "", &body));
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    for name in ["one", "two"] {
        ours(&["create", "--name", name, "-m", "256m", "debian"]).ends(0, &[]);
    }
    let line = json!({ "command": "while :; do echo x >> /tmp/count; sleep 0.1; done" });
    let pid = ask("POST", "/v1/sandboxes/one/commands/run", line)["pid"].clone();
    ours(&["exec", "two", "sh", "-c", "echo kept > /tmp/file"]).prints("");
    let (before, machines) = (ask("GET", "/version", Value::Null), store.machines());
    assert_eq!((&before["version"], machines.len()), (&json!(env!("CARGO_PKG_VERSION")), 2));

    by_newer(&["exec", "two", "cat", "/tmp/file"]).prints("kept\n");
    let after = ask("GET", "/version", Value::Null);
    assert_eq!(after["version"], "9.9.9");
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(store.machines(), machines);
    let lines = || by_newer(&["exec", "one", "wc", "-l", "/tmp/count"]).text();
    let so_far = lines();
    until(|| lines() != so_far);
    let list = ask("GET", "/v1/sandboxes/one/commands/list", Value::Null);
    let is_it = |command: &&Value| command["pid"] == pid && command["running"] == true;
    assert_eq!(list["data"].as_array().unwrap().iter().filter(is_it).count(), 1, "{list}");
    // A machine of the older release is stopped and started by the newer one.
    by_newer(&["stop", "two"]).prints("two\n");
    by_newer(&["start", "two"]).prints("two\n");
    by_newer(&["exec", "two", "true"]).prints("");
    by_newer(&["rm", "-f", "one", "two"]).prints("one\ntwo\n");
    until(|| store.sandboxes().is_empty() && store.machines().is_empty());
}
