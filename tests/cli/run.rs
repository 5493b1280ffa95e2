//! `voidrun run` as far as it goes without a machine.

use serde_json::json;

use crate::daemon::Site;
use crate::support::{Layout, Ran};
use crate::two_layers;

/// A store with an image `tool`, and something in the place of a kernel.
fn with_image() -> Site {
    let site = Site::new();
    let voidrun = &site.voidrun;
    let source = voidrun.layout("tool", &Layout::of(&two_layers()));
    voidrun.run(&["images", "pull", &source]).ok();
    voidrun.file("kernel", b"this is no kernel");
    site
}

#[test]
fn wrong_command_lines_are_not_the_commands_codes() {
    let site = with_image();
    let voidrun = &site.voidrun;
    let kernel = voidrun.path("kernel").display().to_string();
    for (arguments, word) in [
        (&["run"][..], "IMAGE"),
        (&["run", "--cpus", "0", "tool"], "between 1 and 32"),
        (&["run", "--memory", "1024", "tool"], "512MiB"),
        (&["run", "--nonsense", "tool"], "--nonsense"),
        (&["run", "-w", "relative", "tool"], "begins with /"),
        (&["run", "-v", "/src:/src", "tool"], "voidrun cp"),
        (&["run", "-it", "tool", "sh"], "not a terminal"),
        (&["run", "--kernel", &kernel, "--env-file", "/nonexistent", "tool"], "/nonexistent"),
        (&["run", "--kernel", &kernel, "UPPER", "sh"], "UPPER"),
    ] {
        voidrun.run(arguments).fails(125, &[word]);
        let home = voidrun.path("elsewhere").display().to_string();
        voidrun.run(&[&["--home", &home], arguments].concat()).fails(125, &[]);
    }
    voidrun.run(&["run", "--help"]).ok();
    // Other verbs have their own.
    voidrun.run(&["images", "rm", "--nonsense", "run"]).fails(2, &[]);
    let ran = voidrun.run(&["--json", "run", "-v", "x", "tool"]);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((ran.code, &error["code"]), (Some(125), &json!("usage")));
}

#[test]
fn a_missing_image() {
    let site = with_image();
    let voidrun = &site.voidrun;
    voidrun.configure("kernel = '/dev/null'\n");
    let kernel = voidrun.path("kernel").display().to_string();
    voidrun
        .run(&["run", "--kernel", &kernel, "--pull", "never", "debian", "sh"])
        .fails(125, &["debian", "docker.io/library/debian", "images pull"]);
    voidrun
        .run(&["run", "--kernel", &kernel, "--pull", "never", "--disk", "64GiB", "tool", "sh"])
        .fails(125, &["tool", "size"]);
    voidrun.run(&["run", "--kernel", &kernel, "code", "sh"]).fails(125, &["./scripts/images code"]);
}

#[test]
fn a_missing_kernel() {
    let site = with_image();
    let words = ["./kernels/build", "VOIDRUN_KERNEL", "--kernel"];
    site.run(&["run", "tool", "sh"]).fails(125, &words);
    let mut command = site.command(&["run", "tool", "sh"]);
    Ran::from(command.env("VOIDRUN_KERNEL", "/nonexistent").output().unwrap())
        .fails(125, &["/nonexistent", "environment VOIDRUN_KERNEL"]);
    site.run(&["run", "--kernel", "/dev", "tool", "sh"]).fails(125, &["/dev", "flag --kernel", "bzImage"]);
}

/// Whatever the reason here, no KVM or none that can be used, or one that works and a kernel that is none.
#[test]
fn a_sandbox_that_cannot_start_leaves_nothing() {
    let site = with_image();
    let voidrun = &site.voidrun;
    let kernel = voidrun.path("kernel").display().to_string();
    let ran = site.run(&["run", "--kernel", &kernel, "tool", "sh"]);
    ran.fails(125, &["cannot start the sandbox", "from tool: "]);
    assert_eq!(voidrun.files("sandboxes"), Vec::<String>::new());
}

#[test]
fn what_a_killed_run_has_left_goes_with_the_next_command() {
    let site = with_image();
    let voidrun = &site.voidrun;
    let left = voidrun.store().join("sandboxes/0123456789ab");
    std::fs::create_dir_all(&left).unwrap();
    for name in ["lock", "disk.diff", "exit.json"] {
        std::fs::write(left.join(name), b"").unwrap();
    }
    voidrun.run(&["images", "ls"]).ok();
    assert_eq!(voidrun.files("sandboxes"), Vec::<String>::new());
}
