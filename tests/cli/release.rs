//! Programs of two releases, and a daemon of one of them.

use std::path::PathBuf;
use std::process::Stdio;

use crate::daemon::Site;
use crate::patched::program_of;
use crate::support::Ran;

#[test]
fn a_newer_program_takes_the_place_of_an_older_daemon() {
    let site = Site::new();
    let newer = program_of(site.voidrun.dir.path(), "9.9.9");
    let run = |program: &PathBuf, arguments: &[&str]| {
        Ran::from(site.command_of(program, arguments).output().unwrap()).ok()
    };
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_voidrun"));
    assert!(run(&newer, &["--version"]).stdout.contains("9.9.9"));
    run(&ours, &["ps"]);
    let before = site.daemon();
    assert_eq!(site.release(), env!("CARGO_PKG_VERSION"));

    // Several at once as well.
    let commands: Vec<_> = (0..3).map(|_| site.command_of(&newer, &["ps"]).spawn().unwrap()).collect();
    for command in commands {
        assert_eq!(Ran::from(command.wait_with_output().unwrap()).ok().stderr, "");
    }
    let after = site.daemon();
    assert_ne!(after, before);
    assert_eq!(site.release(), "9.9.9");
    // The older one says so, and changes nothing; nor does the newer one any more.
    let told = run(&ours, &["ps"]).stderr;
    assert!(told.contains("newer release, 9.9.9"), "{told}");
    assert_eq!(run(&newer, &["ps"]).stderr, "");
    assert_eq!(site.daemon(), after);
}

/// It has its options from there.
#[test]
fn a_daemon_that_a_user_has_started_is_the_users_to_end() {
    let site = Site::new();
    let newer = program_of(site.voidrun.dir.path(), "9.9.9");
    let mut foreground = site.command(&["daemon"]).stderr(Stdio::null()).spawn().unwrap();
    while site.sockets().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ran::from(site.command(&["daemon", "--detach"]).output().unwrap()).ok();
    let before = site.daemon();
    let ran = Ran::from(site.command_of(&newer, &["ps"]).output().unwrap()).ok();
    assert!(ran.stderr.contains("older release") && ran.stderr.contains("end it"), "{}", ran.stderr);
    assert_eq!(site.daemon(), before);
    foreground.kill().unwrap();
    foreground.wait().unwrap();
}
