//! Queues that are wrong in every way.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::virtio::{self, Device, FEATURES_OK, INDIRECT, Place, VERSION_1, descriptor};
use crate::{ARENA, RAM_END, Random, cpu, poke, start};

/// One vCPU, and now and then a look whether the device still does its work.
pub fn one(random: &mut Random, rounds: u64) {
    for round in 0..rounds {
        for device in virtio::devices() {
            wreck(random, device, true);
            if round % 8 == 0 {
                virtio::check(device);
            }
        }
    }
    virtio::check_all();
}

static SEED: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

/// Two vCPUs at the same device.
pub fn two(random: &mut Random, rounds: u64) {
    SEED.store(random.next(), Ordering::Relaxed);
    ROUNDS.store(rounds, Ordering::Relaxed);
    start::start_second(second);
    race(random, rounds);
    while !DONE.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    virtio::check_all();
}

extern "C" fn second() -> ! {
    race(&mut Random(SEED.load(Ordering::Relaxed)), ROUNDS.load(Ordering::Relaxed));
    DONE.store(true, Ordering::Release);
    cpu::halt()
}

fn race(random: &mut Random, rounds: u64) {
    for _ in 0..rounds {
        virtio::devices().for_each(|device| wreck(random, device, false));
    }
}

/// Brings `device` up with queues that are wrong. `alone`: nobody else does, so that its answers mean something.
fn wreck(random: &mut Random, device: Device, alone: bool) {
    let offered = device.offered();
    let wanted = random.next() & offered | VERSION_1;
    let odd = 1 << random.below(64);
    let (features, good) = match random.below(8) {
        0 => (wanted | odd, odd & offered != 0),
        1 => (wanted & !VERSION_1, false),
        _ => (wanted, true),
    };
    let agreed = device.negotiate(features);
    assert!(!alone || agreed == good, "{features:#x} of {offered:#x}: the device says {agreed}");
    let places = [(); 3].map(|()| place(random));
    for (number, place) in (0..device.queues()).zip(places) {
        fill(random, place);
        // Also twice, and queues that there are not.
        for _ in 0..1 + random.below(2) {
            device.set_queue(if random.once_in(16) { random.next() as u32 } else { number }, place);
        }
    }
    device.driver_ok();
    if random.once_in(4) {
        device.driver_ok();
    }
    for _ in 0..random.below(12) {
        let place = random.one_of(&places);
        match random.below(8) {
            0 => fill(random, place),
            1 => available(random, place),
            2 => device.write(virtio::STATUS, random.next() as u32 & 0xff & !FEATURES_OK),
            3 => (0..64).for_each(|_| device.notify(0)),
            4 => device.notify(random.next() as u32),
            _ => device.notify(random.below(3) as u32),
        }
    }
    // Half of the time it is still at work when the next driver comes.
    if alone && random.once_in(2) {
        device.reset();
    }
}

fn place(random: &mut Random) -> Place {
    let size = match random.below(8) {
        0 => random.one_of(&[0, 3, 511, 512, 0x8000, 0xffff, 0x1_0000, u32::MAX]),
        _ => 1 << random.below(9),
    };
    let (table, avail, used) = (random.place(16), random.place(2), random.place(4));
    match random.below(12) {
        0 => Place { size, table: random.address(), avail, used },
        1 => Place { size, table, avail: random.address(), used },
        2 => Place { size, table, avail, used: random.address() },
        // Over each other.
        3 => Place { size, table, avail: table, used },
        4 => Place { size, table, avail, used: table },
        5 => Place { size, table, avail, used: avail.next_multiple_of(4) },
        // Over the device's own registers, and over the end of the RAM.
        6 => Place { size, table, avail, used: virtio::WINDOW },
        7 => Place { size, table: RAM_END - 16, avail: RAM_END - 2, used: RAM_END - 4 },
        _ => Place { size, table, avail, used },
    }
}

/// A table of descriptors and an available ring, as far as there is RAM for them.
fn fill(random: &mut Random, place: Place) {
    table(random, place.table, place.size);
    for index in 0..u64::from(place.size.min(256)) {
        let head = if random.once_in(32) { random.next() } else { random.below(place.size.max(1).into()) };
        write(place.avail.wrapping_add(4 + index * 2), head as u16);
    }
    available(random, place);
}

/// How many chains there are said to be.
fn available(random: &mut Random, place: Place) {
    let index = match random.below(4) {
        0 => random.next() as u16,
        _ => random.below(u64::from(place.size) + 2) as u16,
    };
    write(place.avail, random.below(2) as u16);
    write(place.avail.wrapping_add(2), index);
}

fn table(random: &mut Random, at: u64, size: u32) {
    for index in 0..u64::from(size.min(256)) {
        let entry = at.wrapping_add(index * 16);
        if !(ARENA..RAM_END - 16).contains(&entry) {
            return;
        }
        let flags = if random.once_in(16) { random.next() as u16 } else { random.below(8) as u16 };
        let next = if random.once_in(16) { random.next() } else { random.below(size.into()) };
        if flags & INDIRECT != 0 {
            // Mostly whole descriptors; they may be indirect again, loop, or be the table itself.
            let inner = if random.once_in(8) { at } else { random.place(16) };
            let len = random.below(20) as u32 * 16 + u32::from(random.once_in(8));
            for index in 0..u64::from(len / 16) {
                let flags = random.below(8) as u16;
                let entry = inner + index * 16;
                if entry < RAM_END - 16 {
                    descriptor(entry, random.address(), random.length(), flags, random.below(20) as u16);
                }
            }
            descriptor(entry, inner, len, flags, next as u16);
        } else {
            descriptor(entry, random.address(), random.length(), flags, next as u16);
        }
    }
}

fn write(address: u64, value: u16) {
    if (ARENA..RAM_END - 1).contains(&address) {
        poke(address, value);
    }
}
