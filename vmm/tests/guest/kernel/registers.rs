//! Accesses to registers and ports that make no sense.

use crate::cpu::{in_all, in_string, out_string, out8, out16, out32};
use crate::{ARENA, Random, peek, poke, virtio};

/// Every width, in and around the window of the devices, and at the ports.
pub fn storm(random: &mut Random, rounds: u64) {
    for _ in 0..rounds {
        if random.once_in(3) {
            ports(random);
            continue;
        }
        // The page before the first device up to one after the last; often at a register that exists.
        let page = virtio::WINDOW - 0x1000 + random.below(6) * 0x1000;
        let offset = match random.below(3) {
            0 => random.below(0x40) * 4,
            1 => 0x100 + random.below(64),
            _ => random.below(0x1000 - 8),
        };
        let address = page + offset;
        if random.once_in(2) {
            match random.below(4) {
                0 => drop(peek::<u8>(address)),
                1 => drop(peek::<u16>(address)),
                2 => drop(peek::<u32>(address)),
                _ => drop(peek::<u64>(address)),
            }
            continue;
        }
        // Registers of queues may take it for an address: not one of this kernel's memory.
        let value = match random.below(3) {
            0 => random.below(256),
            1 => 1 << random.below(8),
            _ => random.next() | ARENA | ARENA << 32,
        };
        match random.below(8) {
            0 => poke(address, value as u8),
            1 => poke(address, value as u16),
            2 => poke(address, value),
            _ => poke(address, value as u32),
        }
    }
    // The serial port as it was: not looped back to itself, and no divisor in place of the data.
    out8(0x3fb, 3);
    out8(0x3fc, 0);
    virtio::devices().for_each(virtio::Device::reset);
    virtio::check_all();
}

/// But for those that end the machine.
fn ports(random: &mut Random) {
    let port = match random.below(3) {
        0 => 0x3f0 + random.below(0x20),
        1 => random.below(0x700),
        _ => random.below(0x1_0000),
    } as u16;
    if matches!(port, 0x61..=0x64 | 0x5fd..=0x600) {
        return;
    }
    let mut bytes = [random.next() as u8; 32];
    let count = random.below(33) as usize;
    match random.below(6) {
        0 => out8(port, bytes[0]),
        1 => out16(port, random.next() as u16),
        2 => out32(port, random.next() as u32),
        3 => out_string(port, &bytes[..count]),
        4 => in_string(port, &mut bytes[..count]),
        _ => in_all(port),
    }
}

/// The IOAPIC and the LAPIC: interrupts of any kind to anyone, so that the machine may well end by it.
pub fn irqchip(random: &mut Random, rounds: u64) {
    for _ in 0..rounds {
        let value = random.next() as u32;
        match random.below(3) {
            0 => {
                poke(0xfec0_0000, random.below(0x50) as u32);
                poke(0xfec0_0010, value);
            }
            1 => poke(0xfee0_0000 + random.below(0x40) * 0x10, value),
            _ => poke(random.one_of(&[0xfec0_0000_u64, 0xfee0_0000]) + random.below(0xff8), value),
        }
        let device = virtio::WINDOW + random.below(3) * 0x1000;
        poke(device + virtio::STATUS, random.below(16) as u32);
    }
}
