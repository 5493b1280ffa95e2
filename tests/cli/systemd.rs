//! The daemon under systemd: the units, and a socket that is opened for it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::daemon::{Site, ask, daemon};

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(name)
}

/// `Key=value` of a unit file, whatever the section.
fn settings(name: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(unit(name)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
}

#[test]
fn units_are_sound() {
    let service = settings("voidrun.service");
    // A restart of the daemon must not end machines, which live in its control group.
    assert_eq!((service["KillMode"].as_str(), service["Delegate"].as_str()), ("process", "yes"));
    let socket = settings("voidrun.socket");
    assert_eq!((socket["SocketMode"].as_str(), socket["DirectoryMode"].as_str()), ("0600", "0700"));
    assert_eq!(socket["ListenStream"], "%t/voidrun/voidrun.sock");

    // The program has to be where the unit says.
    let home = tempfile::tempdir().unwrap();
    let bin = home.path().join(".local/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_voidrun"), bin.join("voidrun")).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["--user", "verify", "--recursive-errors=no"]);
    verify.args([unit("voidrun.service"), unit("voidrun.socket")]);
    verify.env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path());
    let verified = verify.output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("voidrun"), "{said}");
}

#[test]
fn a_socket_that_systemd_has_opened_is_served_and_stays() {
    let site = Site::new();
    let socket = site.voidrun.path("given.sock");
    let mut activate = Command::new("systemd-socket-activate");
    activate.arg("--listen").arg(&socket).args(["-E", "HOME", "-E", "XDG_RUNTIME_DIR", "-E", "VOIDRUN_HOME"]);
    activate.args([env!("CARGO_BIN_EXE_voidrun"), "daemon"]);
    let ours = site.command(&[]);
    activate.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut activated = activate.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < end, "nobody listens at {}", socket.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    let (status, health) = ask(UnixStream::connect(&socket).unwrap(), "GET", "/healthz", "");
    assert_eq!((status, health["status"].as_str()), (200, Some("ok")));
    let pid = daemon(UnixStream::connect(&socket).unwrap());
    // It takes the place of the program that has started it.
    assert_eq!(pid, Pid::from_child(&activated));
    // Its own place is free.
    assert!(site.sockets().is_empty());
    kill_process(pid, Signal::TERM).unwrap();
    assert!(activated.wait().unwrap().success());
    assert!(socket.exists());
}

#[test]
fn another_descriptor_is_refused() {
    let site = Site::new();
    let mut activate = Command::new("systemd-socket-activate");
    activate.args(["--datagram", "--listen"]).arg(site.voidrun.path("given.sock"));
    activate.args([env!("CARGO_BIN_EXE_voidrun"), "daemon"]);
    let mut activated = activate.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    let client = std::os::unix::net::UnixDatagram::unbound().unwrap();
    while client.send_to(b"x", site.voidrun.path("given.sock")).is_err() {
        assert!(Instant::now() < end, "nobody listens");
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = std::io::read_to_string(activated.stderr.take().unwrap()).unwrap();
    assert_eq!(activated.wait().unwrap().code(), Some(2), "{said}");
    assert!(said.contains("LISTEN_FDS"), "{said}");
}
