//! Any bytes as the memory of a guest whose driver has just said DRIVER_OK: the device neither panics nor hangs, writes to
//! no memory but the buffers and the used ring that the driver has given it, and can be saved and restored afterwards.
//!
//! The first byte of the input chooses the device, the second what the driver has accepted, and the rest is the memory from
//! address 0 on: a queue of 8 with its descriptors at 0, the available ring at 0x80 and the used ring at 0xa0. Of a network device or a
//! balloon it is one of the queues, and the others are not used.
#![no_main]

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::{Corpus, fuzz_target};
use net::engine::{Config, Counters, Engine};
use net::wire::{Features, MAX_FRAME, Offload, Wire};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::GuestMemory;
use vmm::devices::net::Network;
use vmm::devices::{Balloon, Block, Net, Rng, Setting, Worker};
use vmm::virtio::{Active, Device, DeviceError, Interrupt, QueueState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Two pieces of memory, with a gap between them.
const PIECES: [Range<usize>; 2] = [0..0x3000, 0x4000..0x6000];
const QUEUE_SIZE: u16 = 8;
const TABLE: Range<usize> = 0..0x80;
const USED: Range<usize> = 0xa0..0xe8;

const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Features of all devices by the bits of the second byte: EVENT_IDX, FLUSH of a block device, and of a network device all that is
/// about checksums and segments, and MRG_RXBUF.
const EVENT_IDX: u64 = 1 << 29;
const FLUSH: u64 = 1 << 9;
const OFFLOAD: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;

const BASE: [u8; 0x4000] = [7; 0x4000];

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let pieces = PIECES.map(|piece| (GuestAddress(piece.start as u64), piece.len()));
    Arc::new(GuestMemoryMmap::from_ranges(&pieces).unwrap())
});
static FILES: LazyLock<[File; 2]> = LazyLock::new(|| {
    let [base, diff] =
        ["base", "diff"].map(|name| File::from(memfd_create(name, MemfdFlags::CLOEXEC).unwrap()));
    base.write_all_at(&BASE, 0).unwrap();
    [base, diff]
});

fuzz_target!(|input: &[u8]| -> Corpus {
    let [device, accepted, content @ ..] = input else { return Corpus::Reject };
    let new = || -> Option<Box<dyn Device>> {
        Some(match device {
            0 => Box::new(Rng::new()),
            1 => Box::new(block()),
            2 => Box::new(Net::new(Engine::new(Config::default(), Box::new(|_| {})).unwrap())),
            3 => Box::new(Net::new(Flood(EventFd::new(EFD_NONBLOCK).unwrap()))),
            4..=6 => Box::new(Balloon::new()),
            _ => return None,
        })
    };
    FILES[1].set_len(0).unwrap();
    let Some(first) = new() else { return Corpus::Reject };
    let is_rng = first.info().name == "rng";

    let mut before = vec![0; PIECES[1].end];
    let len = content.len().min(before.len());
    before[..len].copy_from_slice(&content[..len]);
    before[PIECES[0].end..PIECES[1].start].fill(0);
    for piece in PIECES {
        MEMORY.write_slice(&before[piece.clone()], GuestAddress(piece.start as u64)).unwrap();
    }

    let features = u64::from(accepted & 1) * EVENT_IDX
        + u64::from(accepted >> 1 & 1) * FLUSH
        + u64::from(accepted >> 2 & 1) * OFFLOAD
        + u64::from(accepted >> 3 & 1) * MRG_RXBUF;
    let queue = QueueState {
        max_size: QUEUE_SIZE,
        size: QUEUE_SIZE,
        ready: true,
        event_idx: features & EVENT_IDX != 0,
        next_avail: 0,
        next_used: 0,
        desc_table: 0,
        avail_ring: 0x80,
        used_ring: 0xa0,
    };
    let unused = QueueState { ready: false, ..queue };
    let queues = match device {
        2 => vec![unused, queue],
        3 => vec![queue, unused],
        4 => vec![queue, unused, unused],
        5 => vec![unused, queue, unused],
        6 => vec![unused, unused, queue],
        _ => vec![queue],
    };
    let worker = spawn(first);
    worker.activate(0, active(&queues, features)).unwrap();
    worker.pause().unwrap();
    let saved = worker.save(0).unwrap();
    drop(worker);
    check_memory(&before);

    let restored = spawn(new().unwrap());
    let queues = saved.queues.as_ref().map(|queues| active(queues, features));
    restored.restore(0, saved.device.clone(), queues).unwrap();
    assert_eq!(restored.save(0).unwrap(), saved);
    drop(restored);

    if !is_rng {
        let mut base = [0; BASE.len()];
        FILES[0].read_exact_at(&mut base, 0).unwrap();
        assert!(base == BASE, "the base was written");
    }
    Corpus::Keep
});

/// A network with frames for the guest whenever it is looked at.
struct Flood(EventFd);

impl Network for Flood {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::default()
    }

    fn attach(&mut self, _: Features) {}

    fn detach(&mut self) {}

    fn receive(&mut self, _: &[u8], _: Offload) {}

    fn run(&mut self, wire: &mut dyn Wire) {
        let frame = [7; MAX_FRAME];
        for len in [60, 1514, 1, 4000, MAX_FRAME] {
            if wire.has_room(len) {
                wire.send(&frame[..len], Offload::default());
            }
        }
    }

    fn configure(&mut self, _: Setting) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn block() -> Block {
    let [base, diff] = [&FILES[0], &FILES[1]].map(|file| file.try_clone().unwrap());
    Block::new(base, None, diff).unwrap()
}

fn spawn(device: Box<dyn Device>) -> Worker {
    Worker::spawn("device", vec![device], || Ok(())).unwrap()
}

fn active(queues: &[QueueState], features: u64) -> Active {
    Active {
        memory: Arc::clone(&MEMORY),
        queues: queues.iter().map(|&queue| Queue::try_from(queue).unwrap()).collect(),
        notifiers: queues.iter().map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).collect(),
        features,
        interrupt: Interrupt::new().unwrap(),
    }
}

/// What is not the device's to write is as it was `before`.
fn check_memory(before: &[u8]) {
    let mut writable = vec![false; before.len()];
    let mut tables = vec![TABLE];
    for descriptor in before[TABLE].chunks_exact(16) {
        let (range, flags) = parse(descriptor, before.len());
        if flags & INDIRECT != 0 {
            for entry in before[range.clone()].chunks_exact(16) {
                let (range, flags) = parse(entry, before.len());
                writable[range].iter_mut().for_each(|byte| *byte |= flags & WRITE != 0);
            }
            tables.push(range);
        } else if flags & WRITE != 0 {
            writable[range].fill(true);
        }
    }
    // Descriptors that the device was told to write over may say anything by the time they are read.
    if tables.into_iter().any(|table| writable[table].contains(&true)) {
        return;
    }
    writable[USED].fill(true);
    for piece in PIECES {
        let mut after = vec![0; piece.len()];
        MEMORY.read_slice(&mut after, GuestAddress(piece.start as u64)).unwrap();
        for (at, byte) in piece.zip(after) {
            assert!(writable[at] || byte == before[at], "the device wrote to {at:#x}");
        }
    }
}

/// The part of a descriptor's buffer that can be in memory, and its flags.
fn parse(descriptor: &[u8], end: usize) -> (Range<usize>, u16) {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
    let start = number(&descriptor[..8]).min(end as u64);
    let stop = start.saturating_add(number(&descriptor[8..12])).min(end as u64);
    (start as usize..stop as usize, number(&descriptor[12..14]) as u16)
}
