//! Ports of the host that are published: listening TCP sockets, each of whose clients gets a connection to the guest, and UDP sockets,
//! whose clients are `peers`.
//!
//! The device knows nothing of what the guest makes of it: with each listener comes a vsock port and a preface, some bytes that
//! the guest gets before what the client sends. What a socket is known by is its protocol and its own address, as the kernel says it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType, getsockname, sockopt};

use crate::spec::{MAX_PREFACE, Target, Transport};

/// A socket, and where its clients go.
#[derive(Debug)]
pub struct Published {
    pub(super) socket: OwnedFd,
    pub(super) transport: Transport,
    address: SocketAddr,
    pub(super) guest_port: u32,
    pub(super) preface: Arc<[u8]>,
    /// The socket is not waited for: the process had no descriptor left for a client.
    pub(super) deaf: bool,
}

impl Published {
    /// Takes clients of `socket`, which is made non-blocking. Its clients' sockets have the options of one that listens: whoever makes
    /// it sets TCP_NODELAY and the like.
    ///
    /// # Errors
    /// It is neither a TCP socket that listens nor a UDP socket, or the preface is too long.
    pub fn new(socket: OwnedFd, target: &Target) -> io::Result<Self> {
        let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidInput, why);
        if target.preface.len() > MAX_PREFACE {
            return Err(invalid("the preface is too long"));
        }
        let domain = sockopt::socket_domain(&socket)?;
        let internet = domain == AddressFamily::INET || domain == AddressFamily::INET6;
        let transport = match sockopt::socket_type(&socket)? {
            SocketType::STREAM if internet && sockopt::socket_acceptconn(&socket)? => Transport::Tcp,
            SocketType::DGRAM if internet => Transport::Udp,
            _ => return Err(invalid("it is neither a TCP socket that listens nor a UDP socket")),
        };
        let address = getsockname(&socket)?.try_into()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        let preface = target.preface.as_slice().into();
        Ok(Self { socket, transport, address, guest_port: target.port, preface, deaf: false })
    }

    /// Its protocol, and where it is bound.
    pub fn place(&self) -> (Transport, SocketAddr) {
        (self.transport, self.address)
    }
}
