//! A request of the driver: what a chain of buffers says.

use virtio_bindings::virtio_blk::VIRTIO_BLK_S_IOERR;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryError, Permissions, VolatileSlice};

use crate::GuestMemory;
use crate::vectored::{length, part};
use crate::virtio::{Chain, DeviceError};

/// A driver must not make a chain that is longer than the queue, not in an indirect table either (section 2.7.5.3.1).
pub(super) const MAX_DESCRIPTORS: usize = 256;
/// The type, a reserved field, and the sector (section 5.2.6).
const HEADER: usize = 16;

/// A chain that can be answered.
pub(super) struct Request<'m> {
    /// The last byte that the device may write.
    status: VolatileSlice<'m>,
    /// What is asked, or the status to answer with because that cannot be understood.
    pub(super) body: Result<Body<'m>, u8>,
}

/// What is asked.
pub(super) struct Body<'m> {
    /// VIRTIO_BLK_T_...
    pub(super) kind: u32,
    /// In units of 512 bytes.
    pub(super) sector: u64,
    /// What the driver has filled, after the header.
    pub(super) readable: Vec<VolatileSlice<'m>>,
    /// What the device may fill, before the status.
    pub(super) writable: Vec<VolatileSlice<'m>>,
}

impl<'m> Request<'m> {
    /// Reads `chain`. How its bytes are spread over descriptors means nothing (section 2.7.4).
    ///
    /// # Errors
    /// The chain has no end, or no place for a status.
    pub(super) fn parse(memory: &'m GuestMemory, chain: Chain) -> Result<Self, DeviceError> {
        let descriptors: Vec<Descriptor> = chain.take(MAX_DESCRIPTORS).collect();
        // The iterator ends where it cannot go on; only a chain that is whole ends with a descriptor that has no next one.
        let last = match descriptors.last() {
            Some(last) if !last.has_next() => last,
            _ => return Err(DeviceError::Driver("a chain that is broken or too long")),
        };
        let no_status = || DeviceError::Driver("a block request without a status byte");
        let length_before =
            last.len().checked_sub(1).filter(|_| last.is_write_only()).ok_or_else(no_status)?;
        let address = last.addr().0.checked_add(u64::from(length_before)).ok_or_else(no_status)?;
        let status = memory
            .get_slices(GuestAddress(address), 1, Permissions::Write)
            .and_then(|mut slices| slices.next().ok_or(GuestMemoryError::InvalidBackendAddress)?)
            .map_err(|_| no_status())?;
        Ok(Self { status, body: Body::parse(memory, &descriptors).ok_or(VIRTIO_BLK_S_IOERR as u8) })
    }

    /// Writes the status.
    ///
    /// # Errors
    /// There is no such memory, which was looked at before.
    pub(super) fn answer(&self, status: u8) -> Result<(), DeviceError> {
        self.status.write_obj(status, 0).map_err(|_| DeviceError::Driver("a status byte out of memory"))
    }
}

impl<'m> Body<'m> {
    /// None where a buffer is not in memory, or not where it must be.
    fn parse(memory: &'m GuestMemory, descriptors: &[Descriptor]) -> Option<Self> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for descriptor in descriptors {
            let (buffers, access) = match descriptor.is_write_only() {
                true => (&mut writable, Permissions::Write),
                // What the device writes comes after all that it reads (section 2.7.4.2).
                false if !writable.is_empty() => return None,
                false => (&mut readable, Permissions::Read),
            };
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize, access).ok()? {
                buffers.push(slice.ok()?);
            }
        }
        let header = bytes::<HEADER>(&readable)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        Some(Self {
            kind: u32::from_le_bytes([t0, t1, t2, t3]),
            sector: u64::from_le_bytes(sector),
            readable: part(&readable, HEADER, usize::MAX),
            writable: part(&writable, 0, (length(&writable) as usize).checked_sub(1)?),
        })
    }
}

/// The first `N` bytes of `slices`, if they have so many. They are read once: the driver may change them at any time.
pub(super) fn bytes<const N: usize>(slices: &[VolatileSlice<'_>]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    for slice in slices {
        filled += slice.copy_to(&mut bytes[filled..]);
    }
    (filled == N).then_some(bytes)
}
