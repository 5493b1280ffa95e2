//! The engine with a kernel as its guest: both in network namespaces of their own, a tap device between them. Nothing here reaches
//! the machine's network. Needs root, and says so where it is skipped.

#![allow(clippy::unwrap_used, reason = "tests")]

mod https;
mod load;
mod names;
mod own;
mod place;
mod tap;
mod traffic;
