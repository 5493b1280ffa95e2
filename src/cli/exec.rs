//! `voidrun exec`

use std::path::PathBuf;
use std::time::Duration;

use super::environment::{self, Variable};
use super::error::CliError;
use super::session::{Command, Session, Signals, Stdin, wants_terminal, window_size};
use super::{Context, values};
use crate::api::types;
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
    /// Pass standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// A variable of the command's environment; without a value this environment's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// A file of such variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// The directory that the command starts in [default: the image's]
    #[arg(short, long, value_name = "DIR", value_parser = values::absolute)]
    workdir: Option<String>,
    /// Who the command runs as, as name, uid, name:group or uid:gid [default: the image's, else root]
    #[arg(short, long)]
    user: Option<String>,
    /// End the command after this time, as 30s or 5m [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// Its name, its id, or the beginning of that
    sandbox: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Returns the command's exit code.
pub(super) fn run(args: Args, context: &Context) -> Result<u8, CliError> {
    let tty = wants_terminal(args.interactive, args.tty)?;
    let variables = environment::given(&args.env_file, &args.env)?;
    let what = args.command.join(" ");
    let mut words = args.command.into_iter();
    let exec = types::Exec {
        command: words.next().unwrap_or_default(),
        args: Some(words.collect()),
        cwd: args.workdir,
        env: Some(environment::merge(&[], &variables, |name| std::env::var_os(name))?),
        user: args.user,
        timeout: args.timeout.map(|timeout| timeout.as_secs_f64()),
        tty: tty.then(window_size),
        stdin: Some(args.interactive),
    };

    // One thread is enough to move bytes.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let client = tokio::select! {
            client = Client::connect(&context.config) => client?,
            signal = signals.next() => return Err(CliError::Interrupted { signal, advice: "" }),
        };
        let remote = Remote { client, sandbox: args.sandbox };
        let command = Command::There { remote: &remote, exec };
        let stdin = Stdin::interactive(args.interactive);
        let timeout = args.timeout;
        let session = Session { command, what, stdin, tty, timeout, transcript: None, mark: &|_| {} };
        let outcome = session.run(&mut signals).await;
        Ok(outcome?.exit_code(timeout))
    });
    // The thread that reads standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}
