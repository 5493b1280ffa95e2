//! `voidrun snapshot` and `--from-snapshot` where there are none: what they do with guests is tested where those are.

use serde_json::json;

use crate::daemon::Site;
use crate::support::Ran;

#[test]
fn what_is_not_there_is_told() {
    let site = Site::new();
    let run = |arguments: &[&str]| Ran::from(site.command(arguments).output().unwrap());
    assert_eq!(run(&["snapshot", "ls", "--json"]).json(), json!([]));
    assert_eq!(run(&["snapshot", "ls", "--quiet"]).ok().stdout.trim(), "");
    assert!(run(&["snapshot", "ls"]).ok().stdout.starts_with("NAME "));
    for verb in ["inspect", "rm"] {
        for name in ["ready", "../sandboxes", "A"] {
            run(&["snapshot", verb, name]).fails(1, &[&format!("there is no snapshot {name}")]);
        }
        run(&["snapshot", verb]).fails(2, &["NAME"]);
    }
    run(&["snapshot", "create", "dev", "ready"]).fails(1, &["there is no sandbox dev"]);
    run(&["create", "--from-snapshot", "ready"]).fails(1, &["there is no snapshot ready"]);
    run(&["run", "--from-snapshot", "ready", "python3", "-c", "print()"])
        .fails(125, &["there is no snapshot ready"]);
    run(&["run", "--detach", "--from-snapshot", "ready", "true"]).fails(125, &["there is no snapshot ready"]);
}

/// The snapshot decides on it.
#[test]
fn what_contradicts_a_snapshot_is_refused() {
    let site = Site::new();
    let run = |arguments: &[&str]| Ran::from(site.command(arguments).output().unwrap());
    for more in [["--memory", "1g"], ["--cpus", "2"], ["--disk", "20GiB"], ["--pull", "always"]] {
        let arguments = [&["create", "--from-snapshot", "ready"], &more[..]].concat();
        run(&arguments).fails(2, &["--from-snapshot", more[0]]);
    }
    run(&["create", "--from-snapshot", "ready", "code"]).fails(2, &["--from-snapshot", "[IMAGE]"]);
    run(&["run", "--from-snapshot", "ready", "--kernel", "/vmlinux", "true"]).fails(125, &["--kernel"]);
}
