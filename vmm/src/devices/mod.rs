//! The devices of the machine: one folder or file a device.

pub mod block;
mod console;
mod rng;
mod worker;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod driver;

pub use block::{Block, BlockState};
pub use console::{Console, SerialPort};
pub use rng::{Rng, RngState};
pub use worker::Worker;

use serde::{Deserialize, Serialize};

/// The state of any device, as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum State {
    /// Of [`Block`].
    Block(BlockState),
    /// Of [`Rng`].
    Rng(RngState),
}
