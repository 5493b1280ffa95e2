//! Ports of the host that are published: listening TCP sockets, each of whose clients gets a connection to the guest.
//!
//! The device knows nothing of what the guest makes of it: with each listener comes a vsock port and a preface, some bytes that
//! the guest gets before what the client sends. What a listener is known by is its own address, as the kernel says it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType, getsockname, sockopt};

use crate::spec::{MAX_PREFACE, Target};

/// A listening socket, and where its clients go.
#[derive(Debug)]
pub struct Published {
    pub(super) listener: OwnedFd,
    address: SocketAddr,
    pub(super) guest_port: u32,
    pub(super) preface: Arc<[u8]>,
    /// The listener is not waited for: the process had no descriptor left for a client.
    pub(super) deaf: bool,
}

impl Published {
    /// Takes clients of `listener`, which is made non-blocking. Its clients' sockets have its options: whoever makes it
    /// sets TCP_NODELAY and the like.
    ///
    /// # Errors
    /// It is not a TCP socket that listens, or the preface is too long.
    pub fn new(listener: OwnedFd, target: &Target) -> io::Result<Self> {
        let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidInput, why);
        if target.preface.len() > MAX_PREFACE {
            return Err(invalid("the preface is too long"));
        }
        let stream = sockopt::socket_type(&listener)? == SocketType::STREAM;
        let domain = sockopt::socket_domain(&listener)?;
        let internet = domain == AddressFamily::INET || domain == AddressFamily::INET6;
        if !stream || !internet || !sockopt::socket_acceptconn(&listener)? {
            return Err(invalid("it is not a TCP socket that listens"));
        }
        let address = getsockname(&listener)?.try_into()?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        let preface = target.preface.as_slice().into();
        Ok(Self { listener, address, guest_port: target.port, preface, deaf: false })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
