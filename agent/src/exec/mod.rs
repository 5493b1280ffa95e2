//! Running a command: what was asked for is made into what the kernel takes ([`plan`]), the process is cloned into its cgroup
//! ([`spawn`]), and its input and output are moved until it ends ([`pump`]).

mod plan;
pub(crate) mod pump;
pub(crate) mod ring;
mod spawn;
pub(crate) mod stdio;

use crate::process::{New, Process, Wake};
use crate::stream::Stream;
use crate::{Agent, failure, refusal, start_thread};
use plan::Plan;
use protocol::{Command, Error, ErrorCode, Exec, Started};
use pump::Pump;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use stdio::Stdio;

/// Carries out an Exec request.
pub(crate) fn exec(agent: &Arc<Agent>, exec: &Exec, stream: Stream) {
    let (process, end, stdio) = match start(agent, exec) {
        Ok(started) => started,
        Err(error) => {
            // A host that is gone needs no answer.
            drop(stream.message(&error));
            return;
        }
    };
    if !exec.detached {
        Pump::new(Arc::clone(agent), process, end, stdio, exec, Some(stream)).run();
        return;
    }
    // The command runs whether or not the host still hears of it.
    drop(stream.message(&Started { pid: process.pid() }));
    let pump = Pump::new(Arc::clone(agent), Arc::clone(&process), end, stdio, exec, None);
    if start_thread(move || pump.run()).is_err() {
        // Nobody would see it end.
        process.cgroup.kill();
        agent.processes.forget(&process);
    }
}

/// A command that runs, what tells of its end, and its input and output.
fn start(agent: &Arc<Agent>, exec: &Exec) -> Result<(Arc<Process>, OwnedFd, Stdio), Error> {
    if exec.limits.cpu_millis.is_some_and(|millis| millis < 10) {
        return Err(refusal(ErrorCode::BadRequest, "limits.cpuMillis: at least 10 thousandths of a CPU"));
    }
    let plan = Plan::new(exec)?;
    let internal = |what: &'static str| move |errno| failure(ErrorCode::Internal, what, errno);
    let (stdio, ends) = stdio::open(exec, plan.uid())?;
    let cgroup = agent.cgroups.create(&exec.limits).map_err(|(path, error)| Error {
        code: ErrorCode::Internal,
        message: format!("{}: {error}", path.display()),
        errno: error.raw_os_error(),
    })?;
    let result = (|| {
        let wake = Wake::new().map_err(internal("eventfd"))?;
        let terminal = stdio.terminal.as_ref().filter(|_| exec.detached).map(OwnedFd::try_clone).transpose();
        let terminal =
            terminal.map_err(|e| internal("terminal")(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let command = title(&exec.command);
        let new = New { command, detached: exec.detached, terminal, cgroup: cgroup.clone(), wake };
        spawn::spawn(&agent.processes, new, &plan, &ends)
    })();
    match result {
        Ok((process, end)) => Ok((process, end, stdio)),
        Err(error) => {
            agent.cgroups.retire(&cgroup);
            Err(error)
        }
    }
}

fn title(command: &Command) -> String {
    match command {
        Command::Argv(argv) => argv.join(" "),
        Command::Shell(line) => line.clone(),
    }
}
