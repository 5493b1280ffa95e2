//! Any accesses to the serial port: what is kept has bounds, and reaches no terminal as anything but text. Two bytes are an
//! access: what and where, and the value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::devices::{Console, SerialPort};

/// What exit.json tells.
const TAIL: usize = 8 << 10;

fuzz_target!(|input: &[u8]| {
    let console = Console::default();
    let mut port = SerialPort::new(console.clone());
    for access in input.chunks_exact(2) {
        match access[0] >> 3 {
            0 => drop(port.read(access[0])),
            1 => port.write(access[0] & 7, access[1]),
            // Mostly text, and much of it.
            times => (0..times).for_each(|_| port.write(0, access[1])),
        }
    }
    let tail = console.tail(TAIL);
    assert!(tail.len() <= TAIL);
    let told = [tail, console.panic().unwrap_or_default()].concat();
    assert!(!told.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')), "{told:?}");
});
