//! `voidrun exec`

use super::Context;
use super::error::CliError;
use super::flags::{Process, Streams};
use super::session::{self, Command, Session, Stdin};
use crate::client::{Client, Remote};

/// Run a command in a sandbox
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With -i, when standard input and standard output are terminals, the command gets a terminal. Ctrl-C goes to the
command, a second one ends it. The exit code is the command's, as for `voidrun run`; the sandbox runs on.

Examples:
  voidrun exec dev make test
  voidrun exec -i dev bash
  voidrun exec -w /src -e TOKEN dev sh -c 'git fetch && git status'"
)]
pub(crate) struct Args {
    #[command(flatten)]
    streams: Streams,
    #[command(flatten)]
    process: Process,
    /// Its name, its id, or the beginning of that
    sandbox: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Returns the command's exit code.
pub(super) fn run(args: Args, context: &Context) -> Result<u8, CliError> {
    let what = args.command.join(" ");
    let exec = args.streams.connect(args.process.exec(args.command)?)?;
    let (stdin, timeout) = (Stdin::interactive(args.streams.interactive), args.process.timeout);
    session::block_on(async |signals| {
        let client = signals.guard(Client::connect(&context.config), "").await?;
        let remote = Remote { client, sandbox: args.sandbox };
        let session = Session::new(&remote, Command::Run(exec), what, stdin);
        Ok(session.run(signals).await?.exit_code(timeout))
    })
}
