//! The command line: one verb a file. Results go to standard output, everything else to standard error.

mod attach;
mod code;
mod completions;
mod config;
mod copy;
mod cp;
mod create;
mod daemon;
mod doctor;
mod environment;
mod error;
mod error_code;
mod events;
mod exec;
mod flags;
mod image;
mod images;
mod inherit;
mod inspect;
mod life;
mod login;
mod logout;
mod logs;
mod network;
mod port;
mod progress;
mod ps;
mod reset;
mod rm;
mod run;
mod session;
mod snapshot;
mod system;
mod values;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use rootfs_builder::reference::{ImageName, NameError};
use rootfs_builder::registry::Registry;
use rootfs_builder::store::Store;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::sandbox::{Kernel, Sandboxes};
use error::{CliError, Interrupt};

const GLOBAL: &str = "Global options";

/// Runs untrusted code in a real virtual machine on your own Linux machine, as easily as calling a function.
#[derive(Debug, Parser)]
#[command(version = crate::version(), propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Print JSON for programs: results on standard output, an error as one object on standard error.
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// Where images are kept [default: $VOIDRUN_HOME, else $XDG_DATA_HOME/voidrun]
    #[arg(long, global = true, value_name = "DIR", help_heading = GLOBAL)]
    home: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Args>),
    Create(Box<create::Args>),
    Exec(exec::Args),
    Code(code::Args),
    Cp(cp::Args),
    Ps(ps::Args),
    Inspect(inspect::Args),
    Logs(logs::Args),
    Network(network::Args),
    Attach(attach::Args),
    Events(events::Args),
    #[command(subcommand)]
    Port(port::Verb),
    Stop(life::StopArgs),
    Start(life::StartArgs),
    Pause(life::PauseArgs),
    Resume(life::ResumeArgs),
    Sleep(life::SleepArgs),
    Wake(life::WakeArgs),
    /// Take snapshots of sandboxes, list and remove them
    #[command(subcommand)]
    Snapshot(snapshot::Verb),
    Rm(rm::Args),
    Daemon(daemon::Args),
    /// Pull, list and remove images
    #[command(subcommand)]
    Images(images::Verb),
    /// Keep a user name and password for a registry
    Login(login::Args),
    /// Forget what login kept
    Logout(logout::Args),
    Doctor(doctor::Args),
    /// Show what takes room, and make room
    #[command(subcommand)]
    System(system::Verb),
    Reset(reset::Args),
    /// Show every setting and where it comes from
    #[command(after_help = "Examples:
  voidrun config
  VOIDRUN_HOME=/srv/voidrun voidrun config --json")]
    Config,
    Completions(completions::Args),
}

/// What every verb needs.
struct Context {
    json: bool,
    config: Config,
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    let json = cli.json;
    let runs = matches!(cli.verb, Verb::Run(_) | Verb::Exec(_) | Verb::Code(_) | Verb::Attach(_));
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.print(json);
            ExitCode::from(if runs { error.exit_code_of_run() } else { error.exit_code() })
        }
    }
}

/// A command line that is wrong, or that asks for help or the version.
fn unparsed(error: &clap::Error) -> ExitCode {
    let wrong = error.use_stderr();
    if wrong && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        // What follows, usage and tips, is for people.
        let first = text.split("\n\n").next().unwrap_or(&text);
        let first = first.strip_prefix("error: ").unwrap_or(first);
        let message = match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing".to_owned(),
            _ => first.lines().map(str::trim).collect::<Vec<_>>().join(" "),
        };
        CliError::Usage(message).print(true);
    } else {
        // Nothing is to be done when nobody reads it.
        let _ = error.print();
    }
    ExitCode::from(match wrong {
        // 2 could be the code of the command that was to run.
        true if verb(std::env::args_os().skip(1))
            .is_some_and(|verb| ["run", "exec", "code", "attach"].iter().any(|runs| verb == *runs)) =>
        {
            125
        }
        true => 2,
        false => 0,
    })
}

/// The verb of a command line that cannot be parsed as a whole.
fn verb(mut arguments: impl Iterator<Item = OsString>) -> Option<OsString> {
    while let Some(argument) = arguments.next() {
        if argument == "--home" {
            arguments.next();
        } else if !argument.as_encoded_bytes().starts_with(b"-") {
            return Some(argument);
        }
    }
    None
}

/// Returns the exit code.
fn run(cli: Cli) -> Result<u8, CliError> {
    let config = Config::load(cli.home, |name| std::env::var_os(name))?;
    let context = Context { json: cli.json, config };
    let done = match cli.verb {
        Verb::Run(args) => return run::run(&args, context),
        Verb::Exec(args) => return exec::run(args, &context),
        Verb::Code(args) => return code::run(&args, &context),
        Verb::Events(args) => return events::run(&args, &context),
        Verb::Create(args) => create::run(*args, &context),
        Verb::Attach(args) => return attach::run(&args, &context),
        Verb::Logs(args) => logs::run(&args, &context),
        Verb::Network(args) => network::run(&args, &context),
        Verb::Cp(args) => cp::run(&args, &context),
        Verb::Ps(args) => ps::run(&args, &context),
        Verb::Port(verb) => port::run(&verb, &context),
        Verb::Inspect(args) => inspect::run(&args, &context),
        Verb::Stop(args) => life::stop(&args, &context),
        Verb::Start(args) => life::start(&args, &context),
        Verb::Pause(args) => life::pause(&args, &context),
        Verb::Resume(args) => life::resume(&args, &context),
        Verb::Sleep(args) => life::sleep(&args, &context),
        Verb::Wake(args) => life::wake(&args, &context),
        Verb::Snapshot(verb) => snapshot::run(verb, &context),
        Verb::Rm(args) => rm::run(&args, &context),
        Verb::Daemon(args) => daemon::run(&args, context),
        Verb::Images(verb) => images::run(verb, &context),
        Verb::Login(args) => login::run(args, &context),
        Verb::Logout(args) => logout::run(&args, &context),
        Verb::Doctor(args) => doctor::run(&args, &context),
        Verb::System(verb) => system::run(&verb, &context),
        Verb::Reset(args) => reset::run(&args, &context),
        Verb::Config => config::run(&context),
        Verb::Completions(args) => completions::run(&args),
    };
    done.map(|()| 0)
}

impl Context {
    fn store(&self) -> Result<Store, CliError> {
        let store = Store::open(&self.config.home.value)?;
        // What a killed process has left is nobody's; that it cannot be removed is no reason not to do what was asked for.
        if let Err(error) = Sandboxes::new(store.root()).sweep() {
            CliError::from(error).warn();
        }
        Ok(store)
    }

    /// A kernel that somebody has named: that the daemon may have another environment makes no difference.
    fn kernel(&self) -> Result<Option<PathBuf>, CliError> {
        if self.config.kernel.value.is_none() {
            return Ok(None);
        }
        let kernel = Kernel::find(&self.config.kernel, &self.config.home.value)?;
        let what = || kernel.path.display().to_string();
        let path = std::path::absolute(&kernel.path);
        path.map(Some).map_err(|source| CliError::Input { what: what(), source })
    }

    fn registry(&self) -> Result<Registry, CliError> {
        Ok(crate::images::registry(&self.config)?)
    }

    /// See [`images::name`](crate::images::name).
    fn name(&self, store: &Store, text: Option<&str>) -> Result<ImageName, NameError> {
        crate::images::name(&self.config, store, text)
    }

    /// Prints the result: `value` as JSON if JSON is wanted, otherwise what `text` makes of it.
    fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        write_out(if self.json {
            serde_json::to_string_pretty(value).map_err(|e| CliError::Output(e.into()))?
        } else {
            printable(&text(value))
        })
    }
}

/// Writes to standard output.
fn write_out(mut output: String) -> Result<(), CliError> {
    if !output.is_empty() && !output.ends_with('\n') {
        output.push('\n');
    }
    match std::io::stdout().lock().write_all(output.as_bytes()) {
        // `voidrun images ls | head` is no failure.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::Output(e)),
        _ => Ok(()),
    }
}

/// `text` without what a terminal would obey: names, tags and messages in it may come from an image or a server.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A line on standard error. Nothing is to be done when nobody reads it any more, or the disk below it is full.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(line));
}

/// Runs an async verb until it ends or the user interrupts it; `advice` is what to tell then.
fn wait_for<T>(advice: &'static str, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)?;
    let result = runtime.block_on(async {
        let mut int = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
        let mut term = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
        tokio::select! {
            result = work => result,
            _ = int.recv() => Err(CliError::Interrupted { signal: Interrupt::Int, advice }),
            _ = term.recv() => Err(CliError::Interrupted { signal: Interrupt::Term, advice }),
        }
    });
    // A conversion that nobody waits for any more must not hold up the exit; what it leaves is swept by the next.
    runtime.shutdown_background();
    result
}

/// Columns with the width of their widest cell; the last one is not padded.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|i| rows.iter().filter_map(|row| row.get(i)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
