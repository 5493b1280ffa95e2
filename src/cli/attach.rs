//! `voidrun attach`

use hyper::Method;

use super::Context;
use super::error::CliError;
use super::session::{self, Command, Session, Stdin};
use crate::api::types::Sandbox;
use crate::client::{Client, Remote, segment};

/// Connect to the command of a sandbox, or to another one that runs in its background
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows the last of what the command has written, and what it writes, until it has ended. At a terminal (`run -d -t`) what is
typed goes to the command; Ctrl-P Ctrl-Q leaves it. Ctrl-C goes to the command; a second one leaves it. The exit code is
the command's, and 0 where these keys have left it.

Examples:
  voidrun run -d -t --name shell debian bash
  voidrun attach shell
  voidrun attach dev 123"
)]
pub(crate) struct Args {
    /// Its name, its id, or the beginning of that
    sandbox: String,
    /// Which command, by its process id in the sandbox [default: the one that `run --detach` has started]
    pid: Option<u32>,
}

/// Returns the command's exit code.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    session::block_on(async |signals| {
        let found = async {
            let client = Client::connect(&context.config).await?;
            let path = format!("/sandboxes/{}", segment(&args.sandbox));
            let sandbox: Sandbox = client.ask(Method::GET, &path, &()).await?;
            Ok::<_, CliError>((client, sandbox))
        };
        let (client, sandbox) = signals.guard(found, "").await?;
        let job = sandbox.job.filter(|job| args.pid.is_none_or(|pid| job.pid == Some(pid)));
        let (what, pid, terminal) = match (job, args.pid) {
            (Some(job), _) => (job.command, job.pid, job.terminal),
            (None, Some(pid)) => (format!("process {pid}"), Some(pid), false),
            (None, None) => (String::new(), None, false),
        };
        let Some(pid) = pid else {
            return Err(CliError::Usage(format!(
                "the sandbox {} has no command of its own, as `voidrun run --detach` gives it: name a process id",
                args.sandbox
            )));
        };
        let remote = Remote { client, sandbox: sandbox.id };
        let stdin = Stdin::interactive(terminal);
        let session = Session::new(&remote, Command::Attach { pid, terminal }, what, stdin);
        Ok(session.run(signals).await?.exit_code(None))
    })
}
