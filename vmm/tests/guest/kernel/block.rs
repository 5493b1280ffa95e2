//! Requests in good order for what cannot be: sectors, lengths and kinds of any value. What the device has refused, and what
//! it was not asked for, it has left as it was.

use crate::virtio::{self, ORDERLY, Queue, VERSION_1};
use crate::{Random, peek, poke};

/// The test makes a disk of so many sectors, the eight-byte word `n` of which is `word(n)`.
const SECTORS: u64 = 8192;
const IN: u32 = 0;
const OUT: u32 = 1;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER: u64 = ORDERLY.start + 0x20_0000;
const SEGMENT: u64 = HEADER + 64;
const ANSWER: u64 = HEADER + 128;
const DATA: u64 = HEADER + 0x1000;
const PIECE: u64 = 128;

pub fn storm(random: &mut Random, rounds: u64) {
    let device = virtio::find(virtio::BLOCK);
    assert!(device.negotiate(device.offered() & 0xff_ffff | VERSION_1), "the disk does not agree");
    let mut queue = Queue::new(device, 0);
    device.driver_ok();
    let mut touched = [false; SECTORS as usize];
    for _ in 0..rounds {
        let kind = match random.below(12) {
            0 => random.next() as u32,
            1 => random.below(32) as u32,
            _ => random.one_of(&[IN, OUT, OUT, 4, DISCARD, WRITE_ZEROES]),
        };
        let sector = sector(random);
        let count = match random.below(4) {
            0 => random.next() >> random.below(64) & 0xffff_ffff,
            _ => random.below(64),
        };
        let status = if matches!(kind, DISCARD | WRITE_ZEROES) {
            poke(SEGMENT, sector);
            poke(SEGMENT + 8, count as u32);
            poke(SEGMENT + 12, if random.once_in(8) { random.next() as u32 } else { 0 });
            request(
                &mut queue,
                kind,
                random.next(),
                (SEGMENT, if random.once_in(16) { 15 } else { 16 }, false),
            )
        } else {
            let len = count.min(PIECE) * 512 + if random.once_in(8) { random.below(512) } else { 0 };
            let status = request(&mut queue, kind, sector, (DATA, len as u32, kind == IN));
            if kind != OUT || status != 0 {
                continue;
            }
            assert!(len % 512 == 0, "{len} bytes were written");
            mark(&mut touched, sector, len / 512);
            continue;
        };
        if status == 0 {
            mark(&mut touched, sector, count);
        }
    }
    for piece in 0..SECTORS / PIECE {
        let status = request(&mut queue, IN, piece * PIECE, (DATA, PIECE as u32 * 512, true));
        assert!(status == 0, "sector {} cannot be read", piece * PIECE);
        for sector in (0..PIECE).filter(|sector| !touched[(piece * PIECE + sector) as usize]) {
            for index in 0..64 {
                let number = (piece * PIECE + sector) * 64 + index;
                let found: u64 = peek(DATA + (sector * 64 + index) * 8);
                assert!(found == word(number), "sector {} has changed", piece * PIECE + sector);
            }
        }
    }
    virtio::check_all();
}

/// Half of the disk is left alone.
fn sector(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.next() >> random.below(64) | SECTORS,
        1 => random.one_of(&[SECTORS - 1, SECTORS, u64::MAX, u64::MAX / 512, 1 << 55, (1 << 55) + 1]),
        _ => random.below(SECTORS / 2 - 64),
    }
}

fn mark(touched: &mut [bool], sector: u64, count: u64) {
    if count > 0 {
        assert!(sector < SECTORS && count <= SECTORS - sector, "{count} sectors at {sector} were written");
        touched[sector as usize..(sector + count) as usize].fill(true);
    }
}

/// Waits for the status.
fn request(queue: &mut Queue, kind: u32, sector: u64, data: (u64, u32, bool)) -> u8 {
    poke(HEADER, kind);
    poke(HEADER + 4, 0_u32);
    poke(HEADER + 8, sector);
    poke(ANSWER, 0xff_u8);
    queue.offer(&[(HEADER, 16, false), data, (ANSWER, 1, true)]);
    queue.wait();
    let status = peek(ANSWER);
    assert!(status <= 2, "status {status}");
    status
}

/// SplitMix64 of `number`.
fn word(number: u64) -> u64 {
    Random(number).next()
}
