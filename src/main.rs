//! voidrun: untrusted code in a real virtual machine, as easily as calling a function.

mod cli;
mod config;
mod size;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
