//! A terminal of the user's, a terminal in the guest.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::Store;

/// Both ends of a terminal.
struct Terminal {
    user: File,
    program: OwnedFd,
    seen: Vec<u8>,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let terminal = Self { user: user.into(), program, seen: Vec::new() };
        terminal.resize(30, 100);
        terminal
    }

    fn resize(&self, rows: u16, cols: u16) {
        tcsetwinsize(&self.user, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    fn start(&self, store: &Store, arguments: &[&str]) -> Child {
        let end = || Stdio::from(self.program.try_clone().unwrap());
        store.command(arguments).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    fn types(&mut self, text: &[u8]) {
        self.user.write_all(text).unwrap();
    }

    /// Reads until `text` has come.
    fn shows(&mut self, text: &str) {
        let mut buffer = [0; 1024];
        while !self.text().contains(text) {
            let count = self.user.read(&mut buffer).unwrap();
            self.seen.extend(&buffer[..count]);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Whether what is typed comes in lines, as before a program has made the terminal raw.
    fn is_cooked(&self) -> bool {
        tcgetattr(&self.program)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

#[test]
fn size_keys_and_the_mode_afterwards() {
    let store = Store::new();
    let mut terminal = Terminal::new();
    // -t is not said: two terminals and -i are enough.
    let script = "stty size; trap 'stty size; echo $(tty)' WINCH; trap 'echo interrupted; exit 7' INT; \
                  echo ready; while :; do sleep 0.1; done";
    let mut child = terminal.start(&store, &["run", "-i", "debian", "bash", "-c", script]);
    terminal.shows("30 100\r\n");
    terminal.shows("ready");
    assert!(!terminal.is_cooked());
    terminal.resize(40, 120);
    // The terminal is not the controlling one of the program, so the kernel does not tell it.
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    terminal.shows("40 120\r\n");
    terminal.shows("/dev/pts/");
    // Ctrl-C is a key like any other: the guest's terminal makes a signal of it.
    terminal.types(b"\x03");
    terminal.shows("interrupted");
    assert_eq!(child.wait().unwrap().code(), Some(7), "{}", terminal.text());
    assert!(terminal.is_cooked());
    store.is_clean();
}

#[test]
fn a_shell_ends_with_ctrl_d() {
    let store = Store::new();
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&store, &["run", "-it", "debian", "sh"]);
    terminal.shows("# ");
    terminal.types(b"echo $((6 * 7))\r");
    terminal.shows("\n42\r\n");
    terminal.types(b"\x04");
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", terminal.text());
    assert!(terminal.is_cooked());
    store.is_clean();
}

#[test]
fn the_mode_is_restored_when_the_program_is_told_to_end() {
    let store = Store::new();
    for signal in [Signal::TERM, Signal::HUP] {
        let mut terminal = Terminal::new();
        let script = "trap '' HUP; trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done";
        let mut child = terminal.start(&store, &["run", "-it", "debian", "bash", "-c", script]);
        terminal.shows("ready");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let code = if signal == Signal::TERM {
            terminal.shows("asked");
            kill_process(Pid::from_child(&child), signal).unwrap();
            143
        } else {
            129
        };
        assert_eq!(child.wait().unwrap().code(), Some(code), "{}", terminal.text());
        assert!(terminal.is_cooked());
        store.is_clean();
    }
}
