//! The ports of the host that are published: what the control socket is told and asks of the device that serves them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::devices::Setting;
use crate::devices::vsock::Published;
use crate::spec::{Target, Transport};
use crate::virtio::{DeviceError, Place};

/// The sockets of a machine's ports, which live in its socket device.
#[derive(Debug)]
pub(super) struct PublishedPorts {
    vsock: Option<Place>,
    /// Where they are, in no order.
    places: Vec<(Transport, SocketAddr)>,
}

fn host(source: io::Error) -> DeviceError {
    DeviceError::Host { what: "publishing a port", source }
}

impl PublishedPorts {
    /// Of the socket device, which has sockets at these places already.
    pub(super) fn new(vsock: Option<Place>, places: Vec<(Transport, SocketAddr)>) -> Self {
        Self { vsock, places }
    }

    /// Of one protocol.
    pub(super) fn addresses(&self, of: Transport) -> Vec<SocketAddr> {
        let address = |&(transport, address)| (transport == of).then_some(address);
        self.places.iter().filter_map(address).collect()
    }

    /// Takes clients of one more.
    pub(super) fn add(&mut self, listener: Option<OwnedFd>, target: &Target) -> Result<(), DeviceError> {
        let listener =
            listener.ok_or_else(|| host(io::Error::other("no socket has come with the request")))?;
        let port = Published::new(listener, target).map_err(host)?;
        let place = port.place();
        self.set(Setting::Publish(port))?;
        self.places.push(place);
        Ok(())
    }

    /// Closes one. What is connected by TCP stays so; nothing is done where there is none.
    pub(super) fn remove(&mut self, transport: Transport, address: SocketAddr) -> Result<(), DeviceError> {
        self.set(Setting::Unpublish(transport, address))?;
        self.places.retain(|place| *place != (transport, address));
        Ok(())
    }

    fn set(&self, setting: Setting) -> Result<(), DeviceError> {
        let Some(Place { worker, index }) = &self.vsock else {
            return Err(host(io::ErrorKind::Unsupported.into()));
        };
        worker.configure(*index, setting)
    }
}
