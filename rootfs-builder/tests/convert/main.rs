//! Layers to ext4, judged by e2fsck and debugfs.

mod bad_input;
mod layer;
mod million;
mod property;
mod trees;
