//! `voidrun doctor` where machines can run.

use serde_json::Value;

use crate::{Ran, Store};

#[test]
fn finds_nothing_wrong_with_kvm_and_the_kernel() {
    let store = Store::new();
    let doctor = store.command(&["doctor", "--check", "kvm", "--check", "guest", "--json"]).output().unwrap();
    let report: Value = serde_json::from_str(&Ran::from(doctor).text()).unwrap();
    assert_eq!(report["usable"], true, "{report}");
    let findings = report["findings"].as_array().unwrap();
    let is_ok = |check: &str| findings.iter().any(|found| found["check"] == check && found["status"] == "ok");
    assert!(is_ok("kvm.guest") && is_ok("guest.kernel"), "{report}");
}
