//! voidrun: untrusted code in a real virtual machine, as easily as calling a function.

// Used by the launch of a sandbox.
#[cfg_attr(not(test), expect(dead_code, reason = "nothing launches a sandbox yet"))]
mod agent;
mod cli;
mod config;
mod size;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
