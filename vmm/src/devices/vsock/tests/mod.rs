//! The device under a driver that a test moves by hand; each bug that other implementations had is a test by its name.

mod data;
mod guest;
mod hostile;
mod life;
mod peers;
mod published;
mod random;
