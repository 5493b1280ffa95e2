//! The ports of the host that are published: what the control socket is told and asks of the device that serves them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::devices::Setting;
use crate::devices::vsock::Published;
use crate::spec::Target;
use crate::virtio::{DeviceError, Place};

/// The listeners of a machine, which live in its socket device.
#[derive(Debug)]
pub(super) struct PublishedPorts {
    vsock: Option<Place>,
    /// Where they listen, in no order.
    addresses: Vec<SocketAddr>,
}

fn host(source: io::Error) -> DeviceError {
    DeviceError::Host { what: "publishing a port", source }
}

impl PublishedPorts {
    /// Of the socket device, which has listeners at these addresses already.
    pub(super) fn new(vsock: Option<Place>, addresses: Vec<SocketAddr>) -> Self {
        Self { vsock, addresses }
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes clients of one more.
    pub(super) fn add(&mut self, listener: Option<OwnedFd>, target: &Target) -> Result<(), DeviceError> {
        let listener =
            listener.ok_or_else(|| host(io::Error::other("no socket has come with the request")))?;
        let port = Published::new(listener, target).map_err(host)?;
        let address = port.address();
        self.set(Setting::Publish(port))?;
        self.addresses.push(address);
        Ok(())
    }

    /// Closes one. What is connected stays so; nothing is done where there is none.
    pub(super) fn remove(&mut self, address: SocketAddr) -> Result<(), DeviceError> {
        self.set(Setting::Unpublish(address))?;
        self.addresses.retain(|other| *other != address);
        Ok(())
    }

    fn set(&self, setting: Setting) -> Result<(), DeviceError> {
        let Some(Place { worker, index }) = &self.vsock else {
            return Err(host(io::ErrorKind::Unsupported.into()));
        };
        worker.configure(*index, setting)
    }
}
