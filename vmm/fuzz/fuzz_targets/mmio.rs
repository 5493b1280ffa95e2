//! Any accesses to the registers of devices that live on their worker, and to the memory that they work on: registers read as
//! what they may be, a reset is a reset, and what is the guest's alone stays as it was.
//!
//! The first byte chooses the device. Then each access is a byte that says what is done, and its operands: see [`Guest::step`].
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::{Corpus, fuzz_target};
use net::engine::{Config, Engine};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketType, socket};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::GuestMemory;
use vmm::devices::{Balloon, Block, Net, Rng, Vsock, Worker};
use vmm::virtio::{Device, Face, Place, Transport};

/// Of the memory; an operand of two bytes can name any of it, and what is beyond.
const MEMORY_END: usize = 0xc000;
/// Registers of the transport end and the device's own begin here.
const CONFIG: u64 = 0x100;
const STATUS: u64 = 0x70;

static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_END)]).unwrap()));
static BASE: LazyLock<File> = LazyLock::new(|| {
    let base = memfd("base");
    base.write_all_at(&[7; 0x4000], 0).unwrap();
    base
});

fuzz_target!(|input: &[u8]| -> Corpus {
    let [device, steps @ ..] = input else { return Corpus::Reject };
    let device: Box<dyn Device> = match device {
        0 => Box::new(Rng::new()),
        1 => Box::new(Block::new(BASE.try_clone().unwrap(), None, memfd("diff")).unwrap()),
        2 => {
            // Nobody connects to a socket without a name.
            let listener: UnixListener =
                socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap().into();
            Box::new(Vsock::new(3, listener, UnixStream::pair().unwrap().0).unwrap())
        }
        3 => Box::new(Net::new(Engine::new(Config::default(), Box::new(|_| {})).unwrap())),
        4 => Box::new(Balloon::new()),
        _ => return Corpus::Reject,
    };
    MEMORY.write_slice(&vec![0; MEMORY_END], GuestAddress(0)).unwrap();
    let face = Face::of(&*device);
    let worker = Arc::new(Worker::spawn("device", vec![device], || Ok(())).unwrap());
    let place = Place { worker: Arc::clone(&worker), index: 0 };
    let mut guest = Guest { transport: Transport::new(face, place, Arc::clone(&MEMORY)).unwrap() };
    let mut steps = steps;
    while guest.step(&mut steps).is_some() {}

    guest.transport.write(STATUS, &[0; 4]);
    assert_eq!(guest.status(), 0);
    // Nobody works after a reset: what the driver writes now is there to stay.
    MEMORY.write_slice(&vec![0xa5; MEMORY_END], GuestAddress(0)).unwrap();
    guest.transport.notifiers().iter().for_each(|notifier| notifier.write(1).unwrap());
    worker.pause().unwrap();
    let mut memory = vec![0; MEMORY_END];
    MEMORY.read_slice(&mut memory, GuestAddress(0)).unwrap();
    assert!(memory.iter().all(|byte| *byte == 0xa5), "the device wrote after its reset");
    guest.transport.save().unwrap();
    Corpus::Keep
});

fn memfd(name: &str) -> File {
    memfd_create(name, MemfdFlags::CLOEXEC).unwrap().into()
}

struct Guest {
    transport: Transport,
}

impl Guest {
    fn status(&mut self) -> u32 {
        let mut word = [0; 4];
        self.transport.read(STATUS, &mut word);
        u32::from_le_bytes(word)
    }

    /// None at the end of the input.
    fn step(&mut self, input: &mut &[u8]) -> Option<()> {
        let [what] = take(input)?;
        match what % 8 {
            // A register, with a word of 16 bits: addresses of memory fit.
            0 | 1 => {
                let [register, low, high] = take(input)?;
                self.transport.write(u64::from(register), &[low, high, 0, 0]);
            }
            2 => {
                let [register, value @ ..] = take::<5>(input)?;
                self.transport.write(u64::from(register), &value);
            }
            // Any width at any offset; what comes back is bounded by the device's own registers alone.
            3 => {
                let [low, high, width, value] = take(input)?;
                let offset = u64::from(u16::from_le_bytes([low, high])) % 0x1000;
                let mut data = [value; 8];
                let data = &mut data[..1 << (width % 4)];
                self.transport.write(offset, data);
                self.transport.read(offset, data);
                if offset < CONFIG && data.len() != 4 {
                    assert!(data.iter().all(|byte| *byte == 0), "{} bytes at {offset:#x}", data.len());
                }
            }
            // The memory, as a driver fills it.
            4 => {
                let [low, high, length] = take(input)?;
                let (value, rest) = input.split_at_checked(usize::from(length % 33))?;
                *input = rest;
                let _ = MEMORY.write_slice(value, GuestAddress(u16::from_le_bytes([low, high]).into()));
            }
            // By the rules up to FEATURES_OK.
            5 => {
                for (register, value) in
                    [(STATUS, 0), (STATUS, 1), (STATUS, 3), (0x24, 1), (0x20, 1), (STATUS, 11)]
                {
                    self.transport.write(register, &u32::to_le_bytes(value));
                }
                assert_eq!(self.status() & !0x40, 11);
            }
            // A queue at a multiple of 256 bytes, its rings after its table.
            6 => {
                let [queue, at, size] = take(input)?;
                let (at, size) = (u32::from(at) << 8, 1 << (size % 6));
                let values = [
                    (0x30, queue.into()),
                    (0x38, size),
                    (0x80, at),
                    (0x90, at + size * 16),
                    (0xa0, at + size * 20),
                    (0x44, 1),
                ];
                for (register, value) in values {
                    self.transport.write(register, &value.to_le_bytes());
                }
            }
            // The notification that KVM takes.
            _ => {
                let [queue] = take(input)?;
                let notifiers = self.transport.notifiers();
                let _ = notifiers[usize::from(queue) % notifiers.len()].write(1);
            }
        }
        Some(())
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(*bytes)
}
