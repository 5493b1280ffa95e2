//! The serial port at 0x3f8: what the guest's kernel says, of which the end is kept.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::{Serial, Trigger, serial::NoEvents};

/// So many bytes of the console are kept: some hundred lines.
const KEPT: usize = 32 << 10;
/// How a panic begins (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";
/// The kernel's message is no longer (kernel/panic.c).
const PANIC_MAX: usize = 1024;

/// The end of what was written to the serial port. A clone is the same console.
#[derive(Clone, Debug, Default)]
pub struct Console {
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl Console {
    /// The end of it as at most `limit` bytes of text, from the beginning of a line on. What would move a terminal's cursor
    /// or more is replaced: it is the guest that says it, and the host's user who reads it.
    pub fn tail(&self, limit: usize) -> String {
        let bytes: Vec<u8> =
            self.bytes.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text: String =
            String::from_utf8_lossy(&bytes).chars().filter(|c| *c != '\r').map(printable).collect();
        // A replacement has three bytes: what fits is only known now.
        let cut = text.ceil_char_boundary(text.len().saturating_sub(limit));
        let whole_line = |rest: &str| rest.find('\n').map_or(0, |end| end + 1);
        let start = if cut == 0 { 0 } else { cut + whole_line(&text[cut..]) };
        text[start..].to_owned()
    }

    /// Why the kernel has panicked, if the console says that it has.
    pub fn panic(&self) -> Option<String> {
        let text = self.tail(usize::MAX);
        let (_, message) = text.rsplit_once(PANIC)?;
        let line = message.lines().next().unwrap_or_default().trim_end();
        Some(line[..line.floor_char_boundary(PANIC_MAX)].to_owned())
    }
}

fn printable(c: char) -> char {
    if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c }
}

impl Write for Console {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &data[data.len().saturating_sub(KEPT)..];
        let excess = (bytes.len() + kept.len()).saturating_sub(KEPT);
        bytes.drain(..excess);
        bytes.extend(kept);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A 16550A whose output goes to a [`Console`]. It has no interrupt line: the kernel's early console polls.
pub struct SerialPort {
    serial: Serial<NoLine, NoEvents, Console>,
}

struct NoLine;

impl Trigger for NoLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl SerialPort {
    /// A port after a reset.
    pub fn new(console: Console) -> Self {
        Self { serial: Serial::new(NoLine, console) }
    }

    /// The guest reads the register at `offset`, 0 to 7.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.serial.read(offset)
    }

    /// The guest writes the register at `offset`, 0 to 7.
    pub fn write(&mut self, offset: u8, value: u8) {
        // Fails only when the guest loops its output back and does not read it: its loss.
        let _ = self.serial.write(offset, value);
    }
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_in_whole_lines() {
        let mut console = Console::default();
        for number in 0..10_000 {
            writeln!(console, "line {number}\r").unwrap();
        }
        let tail = console.tail(30);
        assert_eq!(tail, "line 9998\nline 9999\n");
        assert!(console.tail(usize::MAX).len() <= KEPT);
        console.write_all(&vec![0xff; 2 * KEPT]).unwrap();
        assert_eq!(console.bytes.lock().unwrap().len(), KEPT);
        assert_eq!(console.tail(100), "\u{fffd}".repeat(33));
    }

    #[test]
    fn controls_no_terminal() {
        let mut console = Console::default();
        console.write_all(b"\x1b]0;title\x07\tred\x9b\xc2\x9b\r\n").unwrap();
        assert_eq!(console.tail(100), "\u{fffd}]0;title\u{fffd}\tred\u{fffd}\u{fffd}\n");
        console.write_all(format!("{PANIC}{}\n", "ü\x1b".repeat(PANIC_MAX)).as_bytes()).unwrap();
        let message = console.panic().unwrap();
        assert!(message.len() <= PANIC_MAX && message.starts_with("ü\u{fffd}ü"), "{message}");
    }

    #[test]
    fn finds_the_panic() {
        let mut console = Console::default();
        assert_eq!(console.panic(), None);
        console.write_all(b"[ 0.1] Kernel panic - not syncing: No init\r\n[ 0.1] CPU: 0\r\n").unwrap();
        assert_eq!(console.panic().as_deref(), Some("No init"));
    }
}
