//! The block device (section 5.2): a [`Disk`] that the guest sees as one plain disk.

mod copy;
mod disk;
mod failures;
mod format;
mod request;

#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod tests;

pub use copy::copy_diff;
pub use disk::Disk;
pub use format::{DiskError, GRANULE};

use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::VolatileSlice;

use self::failures::Failures;
use self::request::{Body, MAX_DESCRIPTORS, Request, bytes};
use super::State;
use crate::GuestMemory;
use crate::vectored::{length, part};
use crate::virtio::{Active, Chain, ConfigSpace, Device, DeviceError, Events, Info, Saved};

const QUEUE: usize = 0;
/// The unit of the protocol, whatever the size of a block.
const SECTOR: u64 = 512;
/// Bytes of a segment.
const SIZE_MAX: u32 = 64 << 10;
/// Segments of a request: a chain without its header and its status.
const SEG_MAX: u32 = MAX_DESCRIPTORS as u32 - 2;
/// What one request can move: it keeps the worker no longer than this takes.
const MAX_DATA: u64 = SIZE_MAX as u64 * SEG_MAX as u64;
/// What one request can zero or discard, for the same reason: 256 MiB.
const MAX_ZERO_SECTORS: u32 = (256 << 20) / SECTOR as u32;
/// What the guest sees as the serial number.
const ID: &[u8] = b"voidrun";

const FEATURES: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A virtio block device.
///
/// Its blocks are [`GRANULE`]s, so that a guest writes no less than what is copied as one; and nothing is lost, since our
/// images are ext4 of 4096-byte blocks. Requests of single sectors work all the same.
///
/// Requests are handled one after the other, on the worker's thread: nothing is in flight between two notifications.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    failures: Failures,
    config: Arc<ConfigSpace>,
    active: Option<Active>,
}

/// By what a disk that is restored is known to be the one that was saved. What is in it is in its diff.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// Bytes of the disk.
    pub size: u64,
    /// [`Disk::base_mark`].
    pub base_mark: u32,
}

impl Block {
    /// A device that is not active, with the disk that [`Disk::open`] makes of `base`, `lower` and `diff`.
    ///
    /// # Errors
    /// As for [`Disk::open`].
    pub fn new(base: File, lower: Option<File>, diff: File) -> Result<Self, DiskError> {
        let disk = Disk::open(base, lower, diff)?;
        let config = Arc::new(ConfigSpace::read_only(configuration(disk.size())));
        Ok(Self { disk, failures: Failures::default(), config, active: None })
    }

    fn state(&self) -> BlockState {
        BlockState { size: self.disk.size(), base_mark: self.disk.base_mark() }
    }
}

impl Device for Block {
    fn info(&self) -> Info {
        Info { id: VIRTIO_ID_BLOCK, name: "block", features: FEATURES, queues: &[MAX_DESCRIPTORS as u16] }
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, active: Active, _: &Events<'_>) -> Result<(), DeviceError> {
        self.active = Some(active);
        Ok(())
    }

    fn deactivate(&mut self, _: &Events<'_>) {
        self.active = None;
    }

    fn notified(&mut self, _: usize, _: &Events<'_>) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        // A driver that cannot flush expects that what is written is there (section 5.2.6.2).
        let write_through = active.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        active.drain(QUEUE, |memory, chain| {
            handle(&mut self.disk, &mut self.failures, write_through, memory, chain)
        })
    }

    fn pause(&mut self) -> Result<(), DeviceError> {
        self.disk.flush().map_err(|source| DeviceError::Host { what: "flushing the disk", source })
    }

    fn save(&self) -> Saved {
        Saved { device: State::Block(self.state()), queues: self.active.as_ref().map(Active::save) }
    }

    fn restore(&mut self, state: State, active: Option<Active>, _: &Events<'_>) -> Result<(), DeviceError> {
        let wrong = |why| DeviceError::State { device: "block", why };
        let State::Block(state) = state else {
            return Err(wrong("it is of another device".to_owned()));
        };
        if state != self.state() {
            return Err(wrong(format!("it is of another disk: {state:?}, and this is {:?}", self.state())));
        }
        self.active = active;
        Ok(())
    }
}

/// `struct virtio_blk_config` (section 5.2.4).
fn configuration(size: u64) -> Vec<u8> {
    let mut config = vec![0; 60];
    let mut set = |offset: usize, value: &[u8]| config[offset..offset + value.len()].copy_from_slice(value);
    set(0, &(size / SECTOR).to_le_bytes()); // capacity
    set(8, &SIZE_MAX.to_le_bytes());
    set(12, &SEG_MAX.to_le_bytes());
    set(20, &(GRANULE as u32).to_le_bytes()); // blk_size
    set(36, &MAX_ZERO_SECTORS.to_le_bytes()); // max_discard_sectors
    set(40, &1_u32.to_le_bytes()); // max_discard_seg
    set(44, &((GRANULE / SECTOR) as u32).to_le_bytes()); // discard_sector_alignment
    set(48, &MAX_ZERO_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    set(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
    set(56, &[1]); // write_zeroes_may_unmap
    config
}

/// Does what `chain` asks, and tells how many bytes of it are written, from the first on.
fn handle(
    disk: &mut Disk,
    failures: &mut Failures,
    write_through: bool,
    memory: &GuestMemory,
    chain: Chain,
) -> Result<u32, DeviceError> {
    let request = Request::parse(memory, chain)?;
    let (result, room) = match &request.body {
        Ok(body) => (execute(disk, failures, write_through, body), length(&body.writable)),
        Err(status) => (Err(*status), u64::MAX),
    };
    request.answer(result.err().unwrap_or(VIRTIO_BLK_S_OK as u8))?;
    // The status counts only where all before it is written.
    Ok(match result {
        Ok(written) if written == room => (written + 1) as u32,
        Ok(written) => written as u32,
        Err(_) => u32::from(room == 0),
    })
}

/// Gives how many bytes of `body.writable` are filled, or the status that says why not.
fn execute(
    disk: &mut Disk,
    failures: &mut Failures,
    write_through: bool,
    body: &Body<'_>,
) -> Result<u64, u8> {
    let mut status = |error| failures.status(body.kind, &error);
    let written = match body.kind {
        VIRTIO_BLK_T_IN => {
            let offset = checked(body, &body.writable, &body.readable)?;
            disk.read(offset, &body.writable).map_err(&mut status)?;
            return Ok(length(&body.writable));
        }
        VIRTIO_BLK_T_GET_ID => {
            let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
            id[..ID.len()].copy_from_slice(ID);
            let mut rest = id.as_slice();
            for slice in &part(&body.writable, 0, id.len()) {
                slice.copy_from(rest);
                rest = &rest[slice.len()..];
            }
            return Ok((id.len() - rest.len()) as u64);
        }
        VIRTIO_BLK_T_OUT => {
            let offset = checked(body, &body.readable, &body.writable)?;
            disk.write(offset, &body.readable)
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            let (offset, len) = range(body)?;
            disk.zero(offset, len)
        }
        VIRTIO_BLK_T_FLUSH => disk.flush(),
        _ => return Err(VIRTIO_BLK_S_UNSUPP as u8),
    };
    written.and_then(|()| if write_through { disk.flush() } else { Ok(()) }).map_err(status)?;
    Ok(0)
}

/// Where on the disk `data` belongs: whole sectors, no more than was offered, and nothing in the other direction.
fn checked(body: &Body<'_>, data: &[VolatileSlice<'_>], other: &[VolatileSlice<'_>]) -> Result<u64, u8> {
    let len = length(data);
    if !len.is_multiple_of(SECTOR) || len > MAX_DATA || !other.is_empty() {
        return Err(VIRTIO_BLK_S_IOERR as u8);
    }
    offset(body.sector)
}

/// The range of the one segment that a DISCARD or WRITE_ZEROES has: its sector, their number and flags (section 5.2.6).
fn range(body: &Body<'_>) -> Result<(u64, u64), u8> {
    let segment: [u8; 16] = bytes(&body.readable).ok_or(VIRTIO_BLK_S_IOERR as u8)?;
    if length(&body.readable) != 16 || !body.writable.is_empty() {
        return Err(VIRTIO_BLK_S_IOERR as u8);
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = segment;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    // Zeros are holes with and without it: the disk is thin, and what is allocated is not the guest's to see.
    let known = if body.kind == VIRTIO_BLK_T_WRITE_ZEROES { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
    if u32::from_le_bytes(flags) & !known != 0 {
        return Err(VIRTIO_BLK_S_UNSUPP as u8);
    }
    if count > MAX_ZERO_SECTORS {
        return Err(VIRTIO_BLK_S_IOERR as u8);
    }
    Ok((offset(sector)?, u64::from(count) * SECTOR))
}

/// The byte at which `sector` begins; whether it is on the disk, the disk knows.
fn offset(sector: u64) -> Result<u64, u8> {
    sector.checked_mul(SECTOR).ok_or(VIRTIO_BLK_S_IOERR as u8)
}
