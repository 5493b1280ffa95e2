//! `/init` of the guest's initramfs.

use agent::cgroup::Cgroups;
use agent::{Agent, control, init, kmsg, serve, vsock};
use std::error::Error;
use std::path::PathBuf;
use std::process::exit;

fn main() {
    let began = control::clock_us();
    kmsg::log_panics();
    if std::process::id() != 1 {
        eprintln!(
            "voidrun-agent {}: PID 1 of a voidrun guest, of no use elsewhere",
            env!("CARGO_PKG_VERSION")
        );
        exit(2);
    }
    if let Err(error) = run(began) {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        kmsg::emergency(message);
        // The end of PID 1 is a kernel panic: the host reads the line above and sees the machine end.
        exit(1);
    }
}

fn run(began: u64) -> Result<(), Box<dyn Error>> {
    let config = init::run()?;
    let agent = Agent::new(Cgroups::new(PathBuf::from(init::CGROUPS)), config)?;
    // Before the host hears that the agent is ready.
    let listener = vsock::listen(protocol::AGENT_PORT).map_err(|error| format!("vsock: {error}"))?;
    serve::start(&agent, listener)?;
    control::run(&agent, began)
}
