//! What the guest finds at I/O ports: the serial port, the i8042 that resets the machine, the ACPI sleep register.

use std::sync::{Mutex, PoisonError};

use crate::arch::x86_64::layout;
use crate::devices::SerialPort;

/// The i8042's data port.
const I8042_DATA: u16 = 0x60;

/// The devices at I/O ports.
#[derive(Debug)]
pub(crate) struct Ports {
    serial: Mutex<SerialPort>,
}

/// What a write to a port has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    /// Off: ACPI S5.
    Off,
    /// The CPU's reset line.
    Reset,
}

impl Ports {
    pub(crate) fn new(serial: SerialPort) -> Self {
        Self { serial: Mutex::new(serial) }
    }

    /// The guest reads a port. Where there is nothing it reads ones, as from an open bus; the i8042
    /// and the sleep register have nothing to say, so that nobody waits for them.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data) {
            (I8042_DATA | layout::I8042_PORT | layout::SLEEP_STATUS_PORT, [byte]) => *byte = 0,
            (port, [byte]) => {
                if let Some(offset) = serial_register(port) {
                    *byte = self.serial.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
                }
            }
            _ => {}
        }
    }

    /// The guest writes a port.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<Power> {
        match (port, data) {
            (layout::I8042_PORT, [layout::I8042_RESET]) => return Some(Power::Reset),
            (layout::SLEEP_CONTROL_PORT, [layout::POWER_OFF]) => return Some(Power::Off),
            (port, [value]) => {
                if let Some(offset) = serial_register(port) {
                    self.serial.lock().unwrap_or_else(PoisonError::into_inner).write(offset, *value);
                }
            }
            _ => {}
        }
        None
    }
}

fn serial_register(port: u16) -> Option<u8> {
    port.checked_sub(layout::SERIAL_PORT).filter(|offset| *offset < 8).map(|offset| offset as u8)
}
