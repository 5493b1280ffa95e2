//! A guest kernel that means its machine harm. The command line says how: `scenario=NAME seed=N rounds=N`.
//!
//! It speaks by the serial port, and switches the machine off at the end. What it gives to devices lies in the upper half of
//! the RAM or in none: what is below is never theirs to write, so that a kernel that comes to its end has seen no stray write.
#![no_std]
#![no_main]

mod block;
mod cpu;
mod registers;
mod rings;
mod start;
mod virtio;
mod vsock;

use core::fmt::Write;

/// The command line, by the VMM's own layout.
const CMDLINE: *const [u8; 2048] = 0x2_0000 as *const [u8; 2048];
/// Of the machines that run this.
pub const RAM_END: u64 = 128 << 20;
/// From here to the end of the RAM everything may be a device's.
pub const ARENA: u64 = 64 << 20;
/// Filled at the start, looked at at the end, and no device's.
const CANARY: core::ops::Range<u64> = 48 << 20..49 << 20;

/// Runs on the first vCPU.
pub extern "C" fn main() -> ! {
    cpu::catch_exceptions();
    let mut random = Random(number("seed="));
    let rounds = number("rounds=");
    for address in CANARY.step_by(8) {
        poke(address, address);
    }
    let scenario = option("scenario=");
    match scenario {
        b"registers" => registers::storm(&mut random, rounds),
        b"irqchip" => registers::irqchip(&mut random, rounds),
        b"rings" => rings::one(&mut random, rounds),
        b"race" => rings::two(&mut random, rounds),
        b"vsock" => vsock::flood(&mut random, rounds),
        b"block" => block::storm(&mut random, rounds),
        b"msr" => cpu::storm(&mut random, rounds),
        b"console" => {
            for _ in 0..rounds {
                cpu::out8(cpu::SERIAL, random.next() as u8);
            }
            let _ = Serial.write_str("\nKernel panic - not syncing: \x1b[31mred\x07\n");
            cpu::reset();
        }
        b"triple-fault" => cpu::triple_fault(),
        b"halt" => cpu::halt(),
        b"spin" => loop {
            core::hint::spin_loop();
        },
        _ => panic!("no such scenario"),
    }
    for address in CANARY.step_by(8) {
        assert!(peek::<u64>(address) == address, "{address:#x} was written");
    }
    let _ = writeln!(Serial, "through");
    cpu::power_off();
}

/// A number on the command line.
fn number(name: &str) -> u64 {
    option(name).iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// What follows `name` on the command line.
fn option(name: &str) -> &'static [u8] {
    // SAFETY: the VMM has put it there, with a NUL, and nobody writes it.
    let text = unsafe { &*CMDLINE };
    let mut words = text.split(|byte| matches!(byte, b' ' | 0));
    words.find_map(|word| word.strip_prefix(name.as_bytes())).expect("an option is missing")
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Somewhere in the arena.
    pub fn place(&mut self, alignment: u64) -> u64 {
        ARENA + self.below((RAM_END - ARENA) / alignment) * alignment
    }

    /// An address that may be wrong in every way but one: it is never in the lower half of the RAM.
    pub fn address(&mut self) -> u64 {
        let edge =
            [RAM_END - 1, RAM_END, 0xd000_0000, 0xfee0_0000, (4 << 30) - 1, 4 << 30, 1 << 52, u64::MAX];
        match self.below(4) {
            0 => self.one_of(&edge),
            1 => self.next() | ARENA,
            2 => 0_u64.wrapping_sub(self.below(0x2000)),
            _ => self.place(1),
        }
    }

    /// A length of a buffer.
    pub fn length(&mut self) -> u32 {
        match self.below(4) {
            0 => self.one_of(&[0, 1, 16, 44, 512, 4096, 1 << 16, 1 << 26, 1 << 31, u32::MAX]),
            1 => self.next() as u32,
            _ => self.below(0x3000) as u32,
        }
    }
}

/// Reads RAM that a device may write.
pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: all of the lower 4 GiB is mapped, and any bits make a `T`: they are numbers here.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes RAM that a device may read, or a device's register.
pub fn poke<T>(address: u64, value: T) {
    // SAFETY: as above; what is written is no memory of this program's.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// The serial port.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        text.bytes().for_each(|byte| cpu::out8(cpu::SERIAL, byte));
        Ok(())
    }
}

/// The words are Linux's, so that the VMM takes it for what it is.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial, "Kernel panic - not syncing: {}", info.message());
    if let Some(location) = info.location() {
        let _ = writeln!(Serial, "at {location}");
    }
    cpu::reset();
}
