//! How runs end, and what they leave.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};

use crate::{DEATH, Ran, Store, count, dies, end_daemon, readable, scratch_image, variable};

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_timeout_kills_a_tree() {
    let store = Store::new();
    let script = "trap '' TERM; setsid sh -c \"trap '' TERM; echo deep; while :; do sleep 1; done\" & \
                  while :; do sleep 1; done";
    let began = Instant::now();
    let ran = store.run(&["--timeout", "3", "debian", "bash", "-c", script]);
    ran.ends(124, &["3s", "--timeout"]);
    assert_eq!(ran.stdout, b"deep\n");
    // Sixty seconds are the boot's on an emulated CPU.
    assert!(began.elapsed() < Duration::from_secs(75));
}

#[test]
fn ctrl_c_goes_to_the_command() {
    let store = Store::new();
    let script = "trap 'echo interrupted; exit 7' INT; echo up; while :; do sleep 0.1; done";
    let (mut child, mut output) = store.up(&["debian", "bash", "-c", script]);
    signal(&child, Signal::INT);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*rest), (Some(7), "interrupted\n"));
    store.is_clean();
}

#[test]
fn a_second_ctrl_c_kills() {
    let store = Store::new();
    let script = "trap 'echo ignored' INT; echo up; while :; do sleep 0.1; done";
    let (mut child, mut output) = store.up(&["debian", "bash", "-c", script]);
    let machine = store.machine();
    signal(&child, Signal::INT);
    let mut line = [0; 8];
    output.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ignored\n");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    dies(&machine);
    store.is_clean();
}

#[test]
fn the_program_is_killed() {
    let store = Store::new();
    let (mut child, _output) = store.up(&["debian", "sh", "-c", "echo up; sleep 1000"]);
    let machine = store.machine();
    child.kill().unwrap();
    child.wait().unwrap();
    // The machine goes with whom it was for.
    dies(&machine);
    let end = Instant::now() + DEATH;
    while !store.sandboxes().is_empty() {
        assert!(Instant::now() < end, "its files stay");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_daemon_is_killed() {
    let store = Store::new();
    let (child, _output) = store.up(&["debian", "sh", "-c", "echo up; sleep 1000"]);
    let machine = store.machine();
    end_daemon(store.path());
    Ran::from(child.wait_with_output().unwrap()).ends(125, &["sleep 1000"]);
    dies(&machine);
    // The next daemon finds what the machine has left.
    store.run(&["debian", "echo", "hello"]).prints("hello\n");
}

#[test]
fn the_machine_is_killed() {
    let store = Store::new();
    let (child, _output) = store.up(&["debian", "sh", "-c", "echo up; sleep 1000"]);
    pidfd_send_signal(store.machine(), Signal::KILL).unwrap();
    Ran::from(child.wait_with_output().unwrap()).ends(125, &["killed"]);
    store.is_clean();
}

#[test]
fn the_guest_ends_its_machine() {
    let store = Store::new();
    // reboot(2), with the guest's own constants; `sleep` is the time that the machine has for it.
    for (what, words) in [("0x4321fedc", "has shut down"), ("0x01234567", "has reset the machine")] {
        let script = format!("import ctypes, time; ctypes.CDLL(None).reboot({what}); time.sleep(60)");
        store.run(&["code", "python3", "-c", &script]).ends(125, &[words]);
    }
    let script =
        "echo 1 > /proc/sys/vm/panic_on_oom; python3 -c 'b = [b\"x\" * (1 << 22) for _ in range(256)]'";
    store
        .run(&["--memory", "256m", "code", "bash", "-c", script])
        .ends(125, &["kernel has panicked", "Out of memory"]);
}

#[test]
fn what_is_no_kernel() {
    let store = Store::new();
    let path = store.path().join("kernel");
    std::fs::write(&path, b"this is no kernel").unwrap();
    let ran = store.run(&["--kernel", path.to_str().unwrap(), "debian", "true"]);
    ran.ends(125, &["from debian", "kernel"]);
}

#[test]
fn one_after_the_other() {
    let store = Store::new();
    for _ in 0..count("VOIDRUN_BOOTS", 5) {
        store.run(&["debian", "echo", "hello"]).prints("hello\n");
    }
}

#[test]
fn several_at_once() {
    let store = Store::new();
    let children: Vec<Child> = (0..count("VOIDRUN_PARALLEL", 4))
        .map(|i| store.start(&["-m", "256m", "debian", "echo", &i.to_string()]))
        .collect();
    for (i, child) in children.into_iter().enumerate() {
        Ran::from(child.wait_with_output().unwrap()).prints(&format!("{i}\n"));
    }
    store.is_clean();
}

/// A user in the group kvm and nothing else, with a store of its own.
#[test]
fn as_an_ordinary_user() {
    assert!(rustix::process::geteuid().is_root(), "only root can become somebody else");
    let store = Store::empty();
    let image = scratch_image(store.path());
    let home = store.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), None).unwrap();
    let kernel = store.path().join("kernel");
    std::fs::copy(variable("VOIDRUN_KERNEL"), &kernel).unwrap();
    let program = store.path().join("voidrun");
    std::fs::copy(env!("CARGO_BIN_EXE_voidrun"), &program).unwrap();
    for path in [store.path(), &kernel, &program] {
        readable(path);
    }
    let run = |groups: &str, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", groups, "--no-new-privs", "--"]);
        command.arg(&program).args(arguments).current_dir(&home).env_clear();
        command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("HOME", &home);
        command.env("VOIDRUN_HOME", &home).env("VOIDRUN_KERNEL", &kernel);
        Ran::from(command.stdin(Stdio::null()).output().unwrap())
    };
    run("--groups=kvm", &["images", "pull", &image, "--name", "scratch"]).ends(0, &[]);
    run("--clear-groups", &["run", "scratch"]).ends(125, &["/dev/kvm", "group kvm"]);
    // The groups of a process are those it was started with.
    end_daemon(&home);
    run("--groups=kvm", &["run", "scratch"]).prints("from scratch\n");
    end_daemon(&home);
    assert_eq!(std::fs::read_dir(home.join("sandboxes")).unwrap().count(), 0);
}
