//! voidrun: untrusted code in a real virtual machine, as easily as calling a function.

mod agent;
mod api;
mod cli;
mod client;
mod code;
mod config;
mod daemon;
mod images;
mod lock;
mod pem;
mod sandbox;
mod size;
mod snapshots;
mod socket;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|role| role == "vmm") {
        return machine();
    }
    cli::main()
}

/// This program's release. It stands in the binary once and behind words that nothing else there has, so that a test can make
/// the program of another release.
fn version() -> &'static str {
    const WORDS: &str = "this is voidrun ";
    static RELEASE: &str = concat!("this is voidrun ", env!("CARGO_PKG_VERSION"));
    let release: &'static str = std::hint::black_box(RELEASE);
    &release[WORDS.len()..]
}

/// The hidden role: one machine, as [`sandbox::launch`] starts it.
fn machine() -> ExitCode {
    // A session of its own: neither Ctrl-C nor the end of the terminal that the sandbox was started from is meant for it. It
    // fails where a shell has made this process the leader of a group already, which is as good.
    let _ = rustix::process::setsid();
    vmm::process::main()
}
