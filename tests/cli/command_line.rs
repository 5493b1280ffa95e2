//! Names, usage, errors and settings.

use serde_json::json;

use crate::support::{Layout, Ran, Voidrun, noise};
use crate::two_layers;

#[test]
fn names_never_fall_through() {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("python", &Layout::of(&two_layers()));
    voidrun.configure("[aliases]\npy = 'python'\ncode = 'python'\n");
    voidrun.run(&["images", "pull", &source]).ok();
    for name in ["python", "python:latest", "py", "code"] {
        assert_eq!(voidrun.inspect(name)["reference"], "python", "{name}");
    }
    // Without the rootfs the name is still local: an error, not docker.io/library/python.
    let rootfs = voidrun.inspect("python")["rootfs"].as_str().unwrap().to_owned();
    std::fs::remove_file(&rootfs).unwrap();
    voidrun.run(&["images", "inspect", "python"]).fails(1, &["root file system of python is missing"]);
    voidrun.run(&["images", "pull", &source]).ok();
    // With a damaged reference as well.
    let reference = voidrun.store().join("refs").join(&voidrun.files("refs")[0]);
    std::fs::write(&reference, b"{").unwrap();
    voidrun.run(&["images", "inspect", "python"]).fails(1, &["is damaged"]);
    voidrun.run(&["images", "gc", "--grace", "0s"]).ok();
    voidrun.run(&["images", "inspect", "python"]).fails(1, &["is damaged"]);
    let listing = voidrun.run(&["images", "ls", "--json"]).json();
    assert_eq!(listing["damaged"].as_array().unwrap().len(), 1, "{listing}");
    voidrun.run(&["images", "pull", &source]).ok();
    assert_eq!(voidrun.names(), ["python"]);
}

#[test]
fn the_default_image() {
    let voidrun = Voidrun::new();
    for arguments in
        [&["images", "inspect"][..], &["images", "pull", "code"], &["images", "inspect", "code:latest"]]
    {
        voidrun.run(arguments).fails(1, &["./scripts/images code", "import code code.oci.tar.zst"]);
    }
    voidrun.run(&["images", "pull", &voidrun.layout("tool", &Layout::of(&two_layers()))]).ok();
    voidrun.configure("default_image = 'tool'\n");
    assert_eq!(voidrun.run(&["images", "inspect"]).json()["reference"], "tool");
    let ran = voidrun.command(&["images", "inspect"]).env("VOIDRUN_DEFAULT_IMAGE", "code").output().unwrap();
    Ran::from(ran).fails(1, &["./scripts/images code"]);
}

#[test]
fn usage_errors() {
    let voidrun = Voidrun::new();
    for arguments in [
        &["images", "pull", "UPPER"][..],
        &["images", "import", "../x", "/dev/null"],
        &["images", "pull", "x", "--size", "much"],
        &["images", "pull", "x", "--size", "1MiB"],
        &["images", "pull", "x", "--size", "16TiB"],
        &["images", "import", "ghcr.io/a/b", "/dev/null"],
        &["images", "import", "oci:v1", "/dev/null"],
        &["images", "pull", "x", "--platform", "linux"],
        &["images", "rm"],
        &["images", "gc", "--grace", "soon"],
        &["login", "registry.example.com"],
        &["create", "--inherit", "everything", "code"],
        &["create", "--inherit", "ca,indexes", "--network", "none", "code"],
        &["nonsense"],
    ] {
        assert_eq!(voidrun.run(arguments).code, Some(2), "{arguments:?}");
    }
    let inherit = ["code", "--inherit", "ca", "--sandbox", "dev", "-l", "python"];
    voidrun.run_with_stdin(&inherit, b"").fails(125, &["--inherit with --sandbox"]);
    voidrun.run_with_stdin(&["images", "pull", "-"], b"").fails(1, &["--name"]);
    let file = voidrun.file("a.tar", b"");
    voidrun.run(&["images", "pull", &file]).fails(2, &[&format!("did you mean oci:{file}, docker-archive:")]);
    let mut command = voidrun.command(&["images", "pull", "a.tar"]);
    Ran::from(command.current_dir(voidrun.path("")).output().unwrap()).fails(2, &["did you mean oci:a.tar"]);
}

#[test]
fn errors_as_json() {
    let voidrun = Voidrun::new();
    let ran = voidrun.run(&["images", "pull", "oci:/nonexistent", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"], "cannot pull /nonexistent");
    assert!(error["causes"][0].as_str().unwrap().contains("/nonexistent"));
    assert_eq!(error["code"], "io");
    assert_eq!(ran.stdout, "");
    let noise = voidrun.file("noise", &noise(10_000, 7));
    for (arguments, exit, code) in [
        (&["images", "inspect", "none"][..], 1, "notFound"),
        (&["images", "import", "x", &noise], 1, "invalidImage"),
        (&["images", "rm"], 2, "usage"),
        (&["images", "pull", "x", "--size", "1MiB"], 2, "usage"),
        (&["nonsense"], 2, "usage"),
        (&[], 2, "usage"),
    ] {
        let ran = voidrun.run(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, Some(exit), "{ran:?}");
        let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["code"], code, "{error}");
    }
    voidrun.run(&["--version", "--json"]).ok();
}

/// `voidrun ... 2>/dev/full`, and a reader of standard error that is gone.
#[test]
fn nobody_has_to_read_standard_error() {
    let voidrun = Voidrun::new();
    let source = voidrun.layout("tool", &Layout::of(&two_layers()));
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for (stderr, name) in [(std::process::Stdio::from(gone), "a"), (full.into(), "b")] {
        let mut command = voidrun.command(&["images", "pull", &source, "--name", name]);
        Ran::from(command.stderr(stderr).output().unwrap()).ok();
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = voidrun.command(&["images", "inspect", "none"]).stderr(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
}

#[test]
fn configuration_is_shown_with_its_origin() {
    let voidrun = Voidrun::new();
    voidrun.configure("[gc]\nbudget = '5GiB'\n");
    let shown = voidrun.run(&["config", "--json"]).json();
    let setting = |key: &str| {
        let settings = shown["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["key"] == key).unwrap().clone()
    };
    assert_eq!(setting("gc.budget")["value"], "5GiB");
    assert!(setting("gc.budget")["origin"].as_str().unwrap().ends_with("config.toml"));
    assert_eq!(setting("home")["origin"], "environment VOIDRUN_HOME");
    assert_eq!(
        setting("default_image"),
        json!({ "key": "default_image", "value": "code", "origin": "default" })
    );
    assert_eq!(setting("run.warm"), json!({ "key": "run.warm", "value": true, "origin": "default" }));
    voidrun.configure("[run]\nwarm = false\n");
    assert!(voidrun.run(&["config"]).ok().stdout.contains("run.warm             false"));
    voidrun.configure("defaultimage = 'x'\n");
    voidrun.run(&["images", "ls"]).fails(1, &["config.toml:1:", "did you mean `default_image`?"]);
}

/// bash accepts what is printed for it, and completes by it.
#[test]
fn completions() {
    let voidrun = Voidrun::new();
    let script = voidrun.run(&["completions", "bash"]).ok().stdout;
    let path = voidrun.file("voidrun.bash", script.as_bytes());
    // As readline calls it: the command, the word to complete, the word before.
    let complete = |words: &[&str]| {
        let program = r#"set -eu
            source "$1"
            shift
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            _voidrun "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" || true
            echo "${COMPREPLY[*]}""#;
        let mut bash = std::process::Command::new("bash");
        bash.args(["--norc", "-c", program, "bash", &path, "voidrun"]).args(words);
        Ran::from(bash.output().unwrap()).ok().stdout.trim_end().to_owned()
    };
    assert_eq!(complete(&["im"]), "images");
    assert_eq!(complete(&["images", "imp"]), "import");
    assert_eq!(complete(&["completions", "f"]), "fish");
    assert_eq!(complete(&["run", "--mem"]), "--memory");
    assert_eq!(complete(&["run", "--pull", "n"]), "never");
    assert_eq!(complete(&["snapshot", "in"]), "inspect");
    assert_eq!(complete(&["create", "--from"]), "--from-snapshot");
    // The machine's own role, and options that the help does not show.
    assert_eq!(complete(&["vm"]), "");
    assert_eq!(complete(&["run", "--vol"]), "");
    for (shell, begins) in [("zsh", "#compdef voidrun\n"), ("fish", "# Print an optspec")] {
        let script = voidrun.run(&["completions", shell]).ok().stdout;
        assert!(script.starts_with(begins) && script.contains("memory"), "{shell}: {script}");
        assert!(!script.contains("kernel-args") && !script.contains("vmm"), "{shell}: {script}");
    }
    voidrun.run(&["completions", "csh"]).fails(2, &["bash, zsh, fish"]);
}
