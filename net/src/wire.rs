//! Frames between a guest and the engine, and what either leaves to the other to compute: as in virtio-net (virtio 1.3, section 5.1.6).

use std::num::NonZeroU16;

/// The longest frame, in bytes: an IP packet of 64 KiB behind an Ethernet header.
pub const MAX_FRAME: usize = 14 + 65535;

/// Where frames for the guest go.
pub trait Wire {
    /// Whether the next [`send`](Self::send) of up to `len` bytes has room. Where it has not, whoever owns the engine calls
    /// [`run`](crate::engine::Engine::run) again when there is. Where the guest takes [`Gso`], that has to come true for [`MAX_FRAME`] at
    /// some time, or flows wait for ever.
    fn has_room(&mut self, len: usize) -> bool;

    /// Hands `frame` over. After a `false` of [`has_room`](Self::has_room) for its length it is dropped.
    fn send(&mut self, frame: &[u8], offload: Offload);
}

/// What is left to be computed in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its transport checksum.
    pub checksum: Checksum,
    /// It is to be cut into segments.
    pub gso: Option<Gso>,
}

/// The state of a frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// As the frame says; not looked at by the sender of this.
    #[default]
    Unknown,
    /// The field has the checksum of the pseudo header alone: to be computed from `start`, and stored `offset` bytes behind it.
    Partial {
        /// In the frame.
        start: u16,
        /// From `start`.
        offset: u16,
    },
}

/// A TCP segment that is longer than the wire's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Of IPv6 rather than of IPv4.
    pub v6: bool,
    /// Bytes of payload in each segment.
    pub size: NonZeroU16,
    /// Bytes before the payload: Ethernet, IP and TCP.
    pub header: u16,
}

/// What the guest's driver takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Frames with [`Checksum::Partial`].
    pub checksum: bool,
    /// Frames with [`Gso`] of IPv4.
    pub tso4: bool,
    /// And of IPv6.
    pub tso6: bool,
}
