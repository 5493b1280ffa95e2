//! Commands as other users; they need root to become them.

use crate::host::{assert_root, run, shell};
use protocol::Exec;

fn as_user(user: &str, line: &str) -> String {
    assert_root();
    let outcome = run(Exec { user: Some(user.to_owned()), ..shell(line) });
    assert_eq!(outcome.exit.exit_code, Some(0), "{}", String::from_utf8_lossy(&outcome.stderr));
    outcome.text().trim().to_owned()
}

#[test]
fn ids_groups_and_home() {
    let line = "id -u; id -g; id -G; echo $HOME; umask";
    let ids = as_user("1234:5678", line);
    assert_eq!(ids, "1234\n5678\n5678\n/\n0022");
    assert_eq!(as_user("daemon", line), "1\n1\n1\n/usr/sbin\n0022");
    assert_eq!(as_user("daemon:0", "id -u; id -g; id -G"), "1\n0\n0");
    assert_eq!(as_user("0", "id -u; echo $HOME"), "0\n/root");
}

#[test]
fn its_privileges_are_gone_and_its_output_is_its_own() {
    let status = as_user("1234", "grep CapEff /proc/self/status; test ! -r /etc/shadow && echo unreadable");
    assert_eq!(status.split_whitespace().collect::<Vec<_>>(), ["CapEff:", "0000000000000000", "unreadable"]);
    assert_eq!(as_user("1234", "echo again >/dev/stdout"), "again");
}
