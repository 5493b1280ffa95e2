//! The devices of the machine: one folder or file a device.

mod console;
mod rng;
mod worker;

pub use console::{Console, SerialPort};
pub use rng::{Rng, RngState};
pub use worker::Worker;

use serde::{Deserialize, Serialize};

/// The state of any device, as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum State {
    /// Of [`Rng`].
    Rng(RngState),
}
