//! A guest behind a tap device: the kernel is the guest's, with the offloads that virtio-net has.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use net::engine::Engine;
use net::wire::{Checksum, Features, Gso, MAX_FRAME, Offload, Wire};
use rustix::event::{PollFd, PollFlags, poll};

/// `struct virtio_net_hdr` (linux/virtio_net.h), in the machine's byte order.
const HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
/// Frames that are read before the engine runs.
const BATCH: usize = 64;

/// A tap device of the network namespace of the thread that opens it.
pub(crate) struct Tap {
    file: File,
    frame: Vec<u8>,
}

fn set<T>(file: &File, request: libc::c_ulong, value: T) -> io::Result<()> {
    // SAFETY: the requests used here take a pointer to what `value` is, or, of an integer, the integer itself.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Tap {
    /// Makes the device `name`, and leaves to it what a driver with `features` takes.
    pub(crate) fn new(name: &str, features: Features) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: all zeroes is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
            *to = from as _;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as _;
        set(&file, libc::TUNSETIFF as _, &raw mut request)?;
        let header = HEADER as c_int;
        set(&file, libc::TUNSETVNETHDRSZ as _, &raw const header)?;
        let mut offloads = 0;
        for (taken, flag) in [
            (features.checksum, libc::TUN_F_CSUM),
            (features.tso4, libc::TUN_F_TSO4),
            (features.tso6, libc::TUN_F_TSO6),
        ] {
            if taken {
                offloads |= flag;
            }
        }
        set(&file, libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads))?;
        Ok(Self { file, frame: vec![0; HEADER + MAX_FRAME] })
    }

    /// Carries frames both ways until `done`, which is asked every now and then.
    pub(crate) fn carry(
        &mut self,
        engine: &mut Engine,
        mut done: impl FnMut(&mut Engine) -> bool,
    ) -> io::Result<()> {
        let tick = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        while !done(engine) {
            let mut fds = [
                PollFd::new(&self.file, PollFlags::IN),
                PollFd::from_borrowed_fd(engine.fd(), PollFlags::IN),
            ];
            match poll(&mut fds, Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for _ in 0..BATCH {
                if !self.take(engine)? {
                    break;
                }
            }
            engine.run(&mut Writer { file: &self.file });
        }
        Ok(())
    }

    /// Hands a frame of the guest to the engine, if there is one.
    fn take(&mut self, engine: &mut Engine) -> io::Result<bool> {
        let len = match self.file.read(&mut self.frame) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let (header, frame) = self.frame[..len].split_at(HEADER);
        let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let checksum = if header[0] & NEEDS_CSUM != 0 {
            Checksum::Partial { start: u16_at(6), offset: u16_at(8) }
        } else {
            Checksum::Unknown
        };
        let gso = match (header[1] & 0x7f, NonZeroU16::new(u16_at(4))) {
            (kind @ (TCPV4 | TCPV6), Some(size)) => Some(Gso { v6: kind == TCPV6, size, header: u16_at(2) }),
            _ => None,
        };
        engine.receive(frame, Offload { checksum, gso });
        Ok(true)
    }
}

/// The way to the guest. A tap device takes everything, and its kernel drops what is too much.
struct Writer<'a> {
    file: &'a File,
}

impl Wire for Writer<'_> {
    fn has_room(&mut self, _: usize) -> bool {
        true
    }

    fn send(&mut self, frame: &[u8], offload: Offload) {
        let mut header = [0; HEADER];
        match offload.checksum {
            Checksum::Unknown => {}
            Checksum::Partial { start, offset } => {
                header[0] = NEEDS_CSUM;
                header[6..8].copy_from_slice(&start.to_ne_bytes());
                header[8..10].copy_from_slice(&offset.to_ne_bytes());
            }
        }
        if let Some(gso) = offload.gso {
            header[1] = if gso.v6 { TCPV6 } else { TCPV4 };
            header[2..4].copy_from_slice(&gso.header.to_ne_bytes());
            header[4..6].copy_from_slice(&gso.size.get().to_ne_bytes());
        }
        // What does not go (a device that is down) is lost, as on any wire.
        let _ = self.file.write_vectored(&[io::IoSlice::new(&header), io::IoSlice::new(frame)]);
    }
}
