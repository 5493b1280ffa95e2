//! The devices of the machine: one folder or file a device.

mod balloon;
pub mod block;
mod console;
pub mod net;
mod rng;
pub mod vsock;
mod worker;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod driver;

pub use balloon::{Balloon, BalloonState};
pub use block::{Block, BlockState};
pub use console::{Console, SerialPort};
pub use net::{Net, NetState};
pub use rng::{Rng, RngState};
pub use vsock::{Vsock, VsockState};
pub use worker::Worker;
pub(crate) use worker::borrow;

use std::net::SocketAddr;

use ::net::engine::Limits;
use ::net::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::spec::Transport;

/// The state of any device, as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum State {
    /// Of [`Balloon`].
    Balloon(BalloonState),
    /// Of [`Block`].
    Block(BlockState),
    /// Of [`Net`].
    Net(NetState),
    /// Of [`Rng`].
    Rng(RngState),
    /// Of [`Vsock`].
    Vsock(VsockState),
}

/// What can be changed of a device while the machine runs.
#[derive(Debug)]
pub enum Setting {
    /// Of [`Vsock`]: one more port of the host.
    Publish(vsock::Published),
    /// Of [`Vsock`]: one port of the host less. What is connected by TCP stays so.
    Unpublish(Transport, SocketAddr),
    /// Of [`Net`]: what the guest may reach.
    Policy(Policy),
    /// Of [`Net`]: how much of its network the guest may use.
    Limits(Limits),
    /// Of [`Net`]: the host's name servers.
    Resolvers(Vec<SocketAddr>),
}
