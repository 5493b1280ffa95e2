//! `voidrun doctor` on the machine that is here.

use serde_json::Value;

use crate::support::{Ran, Voidrun};

/// Every finding has the documented form, and the exit code says what they say together.
fn findings(ran: &Ran) -> Vec<Value> {
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().clone();
    let mut failed = Vec::new();
    for finding in &findings {
        let check = finding["check"].as_str().unwrap();
        assert!(!finding["detail"].as_str().unwrap().is_empty(), "{finding}");
        match finding["status"].as_str().unwrap() {
            "ok" => assert_eq!(finding["remedy"], Value::Null, "{finding}"),
            "warning" => assert!(finding["remedy"].is_string(), "{finding}"),
            "failed" => {
                assert!(finding["remedy"].is_string(), "{finding}");
                failed.push(check);
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(report["usable"], failed.is_empty());
    if failed.is_empty() {
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    } else {
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!((ran.code, &error["code"]), (Some(1), &"unusable".into()), "{ran:?}");
        assert_eq!(error["error"], format!("machines cannot run here: {} failed", failed.join(", ")));
    }
    findings
}

fn status<'a>(findings: &'a [Value], check: &str) -> Option<&'a str> {
    findings.iter().find(|finding| finding["check"] == check).and_then(|finding| finding["status"].as_str())
}

#[test]
fn all_checks() {
    let voidrun = Voidrun::new();
    let findings = findings(&voidrun.run(&["doctor", "--json"]));
    for check in [
        "kvm.processor",
        "guest.kernel",
        "host.kernel",
        "host.landlock",
        "host.seccomp",
        "host.namespaces",
        "host.memory",
        "store.directory",
        "store.space",
        "store.sparse",
        "session.runtime-dir",
        "session.cgroup",
        "session.linger",
        "session.files",
    ] {
        assert!(status(&findings, check).is_some(), "{check} is missing in {findings:#?}");
    }
    // The environment of the tests has no such directory, and the store no kernel.
    assert_eq!(status(&findings, "session.runtime-dir"), Some("warning"));
    assert_eq!(status(&findings, "guest.kernel"), Some("failed"));
    assert_eq!(voidrun.files(""), Vec::<String>::new(), "the store is not made");
}

/// Only a KVM that uses the processor's own virtualization runs guests.
#[test]
fn kvm() {
    let findings = findings(&Voidrun::new().run(&["doctor", "--check", "kvm", "--json"]));
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has_virtualization = cpuinfo.split_whitespace().any(|word| matches!(word, "svm" | "vmx"));
    assert_eq!(status(&findings, "kvm.processor"), Some(if has_virtualization { "ok" } else { "warning" }));
    if status(&findings, "kvm.access") == Some("ok") {
        let expected = if has_virtualization { "ok" } else { "failed" };
        assert_eq!(status(&findings, "kvm.guest"), Some(expected), "{findings:#?}");
    } else {
        assert_eq!(status(&findings, "kvm.guest"), None, "{findings:#?}");
    }
}

#[test]
fn for_people() {
    let voidrun = Voidrun::new();
    let ran = voidrun.run(&["doctor", "--check", "guest", "--kernel", "/nonexistent"]);
    let (first, rest) = ran.stdout.split_once('\n').unwrap();
    assert_eq!(
        first,
        "FAIL  guest.kernel  cannot open the guest kernel /nonexistent (flag --kernel): No such file or directory (os error 2)"
    );
    assert!(rest.starts_with("\nguest.kernel:\n  `./kernels/build` makes a kernel"), "{rest}");
    assert!(!ran.stdout.contains('\x1b'));
    ran.fails(1, &["error: machines cannot run here: guest.kernel failed"]);

    let mut command = voidrun.command(&["doctor", "--check", "guest", "--json"]);
    let ran = Ran::from(command.env("VOIDRUN_KERNEL", "/dev/null").output().unwrap());
    let findings = findings(&ran);
    let detail = findings[0]["detail"].as_str().unwrap();
    assert!(detail.contains("/dev/null (environment VOIDRUN_KERNEL) is not a file"), "{detail}");
}

#[test]
fn groups() {
    let voidrun = Voidrun::new();
    let findings = findings(&voidrun.run(&["doctor", "--check", "store", "--check", "session", "--json"]));
    let groups = findings.iter().map(|finding| finding["check"].as_str().unwrap().split('.').next().unwrap());
    let mut groups: Vec<_> = groups.collect();
    groups.dedup();
    assert_eq!(groups, ["store", "session"]);
    voidrun.run(&["doctor", "--check", "store"]).ok();

    let file = voidrun.file("file", b"");
    voidrun
        .run(&["doctor", "--check", "store", "--home", &format!("{file}/store")])
        .fails(1, &["store.directory failed"]);
    voidrun.run(&["doctor", "--check", "everything"]).fails(2, &["kvm, guest, host, store, session"]);
}
