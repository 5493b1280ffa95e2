//! Layers to ext4, judged by e2fsck and debugfs.
// A test that cannot go on fails right there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod layer;
mod million;
mod property;
mod trees;
