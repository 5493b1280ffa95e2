//! Packets (section 5.10.6): the header, and the buffers of a chain that it travels in.
//!
//! The payload may lie in any number of buffers: Linux sends one per page under MSG_ZEROCOPY, which any program in the guest
//! may ask for.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory as _, Permissions, VolatileSlice};

use super::connections::Pair;
use crate::GuestMemory;
use crate::virtio::{Chain, DeviceError};

/// The CID of the host (section 5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The length of a header.
pub(super) const HEADER: usize = 44;
/// The largest payload that is taken, which is the largest that Linux sends.
pub(super) const MAX_PAYLOAD: usize = 64 << 10;
/// The only socket type offered.
pub(super) const STREAM: u16 = 1;
/// The sender of a SHUTDOWN will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a SHUTDOWN will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// More buffers than any driver needs for one packet: a header, and 64 KiB by pages at any offset, are 18.
const MAX_BUFFERS: usize = 64;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    /// `None` for what the specification does not define.
    pub(super) fn new(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The header of a packet, `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Of the payload, in bytes.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// The sender's buffer for the connection, in bytes.
    pub(super) buf_alloc: u32,
    /// How many bytes of the connection the sender has passed on, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// The header of a packet to the guest `cid` without flags, payload or credit.
    pub(super) fn to_guest(cid: u64, pair: Pair, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: pair.host,
            dst_port: pair.guest,
            kind: STREAM,
            op: op as u16,
            ..Self::default()
        }
    }

    /// The ports of a packet from the guest.
    pub(super) fn pair_from_guest(&self) -> Pair {
        Pair { host: self.dst_port, guest: self.src_port }
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER];
        let mut at = 0;
        for field in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        bytes
    }
}

/// The next `N` bytes; zeroes when they are not there, which a header of its full length rules out.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let Some((first, others)) = rest.split_first_chunk() else { return [0; N] };
    *rest = others;
    *first
}

/// The guest's memory that one packet lies in: first its header, then its payload.
#[derive(Debug)]
pub(super) struct Buffers<'m> {
    header: Vec<VolatileSlice<'m>>,
    payload: Vec<VolatileSlice<'m>>,
}

impl<'m> Buffers<'m> {
    /// What the driver sends in `chain`, with the header of it.
    ///
    /// # Errors
    /// The chain is not in guest RAM, or shorter than a header and the payload that it announces.
    pub(super) fn sent(memory: &'m GuestMemory, chain: Chain) -> Result<(Header, Self), DeviceError> {
        let mut buffers = Self::new(memory, chain.readable(), Permissions::Read)?;
        let mut bytes = [0; HEADER];
        let mut place = &mut bytes[..];
        for slice in &buffers.header {
            let copied = slice.copy_to(place);
            place = &mut place[copied..];
        }
        let header = Header::from_bytes(&bytes);
        let len = header.len as usize;
        if len > MAX_PAYLOAD || len > buffers.room() {
            return Err(DeviceError::Driver("a packet that is longer than its buffers"));
        }
        buffers.payload = split(&mut buffers.payload, len)?;
        Ok((header, buffers))
    }

    /// The buffers in which the driver wants to receive a packet.
    ///
    /// # Errors
    /// The chain is not in guest RAM, or has no room for a header and some payload.
    pub(super) fn to_fill(memory: &'m GuestMemory, chain: Chain) -> Result<Self, DeviceError> {
        let buffers = Self::new(memory, chain.writable(), Permissions::Write)?;
        if buffers.payload.is_empty() {
            return Err(DeviceError::Driver("a receive buffer that is shorter than a packet"));
        }
        Ok(buffers)
    }

    fn new(
        memory: &'m GuestMemory,
        descriptors: impl Iterator<Item = Descriptor>,
        access: Permissions,
    ) -> Result<Self, DeviceError> {
        let outside = |_| DeviceError::Driver("a buffer outside of its memory");
        let mut payload = Vec::new();
        let mut left = HEADER + MAX_PAYLOAD;
        for descriptor in descriptors.take(MAX_BUFFERS) {
            let len = left.min(descriptor.len() as usize);
            for slice in memory.get_slices(descriptor.addr(), len, access).map_err(outside)? {
                payload.push(slice.map_err(outside)?);
            }
            left -= len;
        }
        let header = split(&mut payload, HEADER)?;
        Ok(Self { header, payload })
    }

    /// How many bytes of payload fit.
    pub(super) fn room(&self) -> usize {
        self.payload.iter().map(VolatileSlice::len).sum()
    }

    /// The memory of the payload.
    pub(super) fn payload(&self) -> &[VolatileSlice<'m>] {
        &self.payload
    }

    /// Writes the header of a packet to be received.
    pub(super) fn write_header(&self, header: Header) {
        let bytes = header.to_bytes();
        let mut rest = &bytes[..];
        for slice in &self.header {
            let len = slice.len().min(rest.len());
            slice.copy_from(&rest[..len]);
            rest = &rest[len..];
        }
    }
}

/// Takes the first `len` bytes out of `slices`.
fn split<'m>(slices: &mut Vec<VolatileSlice<'m>>, len: usize) -> Result<Vec<VolatileSlice<'m>>, DeviceError> {
    let mut first = Vec::with_capacity(1);
    let mut left = len;
    while left > 0 {
        let short = || DeviceError::Driver("a packet that is shorter than its header");
        let slice = *slices.first().ok_or_else(short)?;
        if slice.len() <= left {
            first.push(slices.remove(0));
            left -= slice.len();
        } else {
            let (own, others) = slice.split_at(left).map_err(|_| short())?;
            first.push(own);
            slices[0] = others;
            left = 0;
        }
    }
    Ok(first)
}
