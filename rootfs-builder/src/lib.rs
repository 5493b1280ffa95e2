//! OCI image to ext4, as an ordinary user, and the store of images.

pub mod convert;
pub mod ext4;
pub mod image;
pub mod layer;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod source;
pub mod store;
pub mod tree;
