//! `voidrun images ...`, as users run it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bad_input;
mod command_line;
mod daemon;
mod doctor;
mod events;
mod idle;
mod images;
mod listen;
mod metrics;
#[path = "../support/patched.rs"]
mod patched;
mod processes;
mod readme;
#[path = "../support/readme.rs"]
mod readme_lines;
mod registry;
mod release;
mod run;
mod snapshot;
mod sources;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod system;
mod systemd;

use support::layer;

fn two_layers() -> Vec<Vec<u8>> {
    vec![layer(&[("etc/os-release", b"NAME=test\n")]), layer(&[("app/main", b"#!/bin/sh\n")])]
}
