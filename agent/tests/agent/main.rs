//! The agent as the host sees it, over a socket pair: one agent for all tests of the process, in cgroups of its own.
//!
//! Its reaper collects every child of this process, so nothing here starts one by other means.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod datagrams;
mod detached;
mod exec;
mod files;
mod forward;
mod host;
mod places;
mod terminal;
mod users;
