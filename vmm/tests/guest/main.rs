//! Tests that run guests. They need a KVM that can: where the machine's own cannot, they run in the lab.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod boot;
mod fork;
mod hostile;
mod process;
