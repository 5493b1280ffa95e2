//! Memory that a guest has freed is the host's again.

use std::os::unix::fs::MetadataExt as _;

use serde_json::{Value, json};

use crate::network::control;
use crate::{Daemon, until};

/// Of what is written and removed, in MiB.
const FREED: u64 = 150;
/// Of it the host has so much again, in MiB: the rest lies beside what the guest uses.
const AGAIN: u64 = 120;

impl Daemon {
    /// What the machine of a sandbox takes of the host's memory, in MiB.
    fn takes(&self, name: &str) -> u64 {
        let id = self.data("GET", &format!("/v1/sandboxes/{name}"), Value::Null)["id"].take();
        control(self, id.as_str().unwrap()).metrics().unwrap().pss_kib >> 10
    }

    /// Runs a line in the directory of a sandbox that is in its memory.
    fn in_memory(&self, name: &str, line: &str) -> String {
        self.cli(&["exec", name, "sh", "-c", &format!("cd /dev/shm && {line}")]).text()
    }

    fn fill(&self, name: &str, file: &str) {
        self.in_memory(name, &format!("head -c {FREED}M /dev/zero | tr '\\0' x > {file}"));
    }

    /// Removes a file from the memory of a sandbox, all of which is there.
    fn frees(&self, name: &str, file: &str) {
        let full = self.takes(name);
        assert!(full > FREED, "{full} MiB");
        self.in_memory(name, &format!("rm {file}"));
        let began = std::time::Instant::now();
        until(|| self.takes(name) < full - AGAIN);
        eprintln!("{name}: {full} MiB, and {} after {:?}", self.takes(name), began.elapsed());
    }
}

#[test]
fn what_a_guest_has_freed_is_the_hosts_again() {
    let daemon = Daemon::new();
    let create = json!({ "image": "debian", "mem": 512, "name": "dev", "warm": false });
    daemon.data("POST", "/v1/sandboxes", create);
    daemon.fill("dev", "gone");
    daemon.frees("dev", "gone");

    // Of memory that is a snapshot's, too.
    let kept = daemon.in_memory("dev", "head -c 8M /dev/urandom | tee kept | sha256sum");
    daemon.fill("dev", "held");
    daemon.cli(&["snapshot", "create", "dev", "first"]).ends(0, &[]);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.data("POST", "/v1/sandboxes", json!({ "fromSnapshot": "first", "name": "clone" }));
    daemon.in_memory("clone", "cat held > /dev/null");
    daemon.frees("clone", "held");
    let checksum = |name| daemon.in_memory(name, "sha256sum < kept");
    assert_eq!(checksum("clone"), kept);

    // It is no part of the next snapshot.
    daemon.cli(&["snapshot", "create", "clone", "second"]).ends(0, &[]);
    let mib = |snapshot: &str| {
        let machine = daemon.store.path().join("snapshots").join(snapshot).join("machine");
        machine.metadata().unwrap().blocks() * 512 >> 20
    };
    assert!(mib("second") < mib("first") - AGAIN, "{} and {} MiB", mib("first"), mib("second"));
    daemon.data("POST", "/v1/sandboxes", json!({ "fromSnapshot": "second", "name": "grandchild" }));
    for name in ["clone", "grandchild"] {
        assert_eq!(checksum(name), kept);
        // The guest has it again when it wants it.
        let again = daemon.in_memory(name, "head -c 32M /dev/urandom | tee again | sha256sum");
        assert_eq!(daemon.in_memory(name, "sha256sum < again"), again);
        assert_eq!(checksum(name), kept);
    }
    daemon.cli(&["rm", "-f", "clone", "grandchild"]).ends(0, &[]);
    daemon.is_clean();
}
