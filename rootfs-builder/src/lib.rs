//! OCI image to ext4, as an ordinary user, and the store of images.

pub mod convert;
pub mod ext4;
pub mod image;
pub mod layer;
pub mod progress;
#[cfg(feature = "pull")]
pub mod pull;
#[cfg(feature = "pull")]
pub mod reference;
#[cfg(feature = "pull")]
pub mod registry;
#[cfg(feature = "pull")]
pub mod source;
#[cfg(feature = "pull")]
pub mod store;
pub mod tree;
