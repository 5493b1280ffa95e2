//! What the agent says when nobody listens yet, or no more: a line in the kernel's log, which the host reads from the serial console.

use std::fs::OpenOptions;
use std::io::Write;

/// Logs a line at level 0, the only one that a quiet kernel prints.
pub fn emergency(message: impl std::fmt::Display) {
    log(0, message);
}

/// Logs a line as a warning: `dmesg` shows it.
pub fn warning(message: impl std::fmt::Display) {
    log(4, message);
}

fn log(level: u8, message: impl std::fmt::Display) {
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record; a record of several lines is hard to find again.
        let line = format!("<{level}>voidrun-agent: {message}").replace('\n', " | ");
        drop(kmsg.write_all(line.as_bytes()));
    }
}

/// Has panics logged. The process aborts after one, and with PID 1 the guest.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| emergency(info)));
}
