//! OCI image to ext4, as an ordinary user, and the store of images.

pub mod image;
pub mod progress;
pub mod registry;
