//! `voidrun run`

mod command;
mod environment;
mod session;
mod signals;
mod terminal;
mod timings;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use rootfs_builder::source::Source;
use rootfs_builder::store::{Image, Store, StoreError};
use vmm::spec::Cpus;

use super::error::CliError;
use super::images::pull::{Shape, file_system_size, obtain};
use super::{Context, tell};
use crate::config::{Origin, Setting};
use crate::sandbox::{Handle, Kernel, Launch, LaunchError, Sandboxes, launch};
use crate::size::{Memory, Size};
use environment::Variable;
use session::{Outcome, Session};
use signals::Signals;
use timings::Timings;

/// Start a sandbox, run one command in it, and remove it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The sandbox is a virtual machine with a disk of its own; nothing of it remains. An image that is not here is pulled.

With -i, when standard input and standard output are terminals, the command gets a terminal (as with docker's -it); without
-i it gets none unless -t asks for it. Ctrl-C goes to the command, a second one ends the sandbox.

The exit code is the command's; 128+N if signal N has ended it; 124 at --timeout; 125 if voidrun has failed; 126 if the
command cannot be run, and 127 if it is not there.

Examples:
  voidrun run code python3 -c 'print(6 * 7)'
  voidrun run -i debian bash
  voidrun run --memory 2g --cpus 2 --timeout 10m -e TOKEN -w /src code make test
  tar c . | voidrun run -i code tar t"
)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct Args {
    /// Pass standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// CPUs of the sandbox, 1 to 32 [default: run.cpus, 1]
    #[arg(long, value_parser = cpus)]
    cpus: Option<Cpus>,
    /// Memory of the sandbox, as 512m or 2GiB [default: run.memory, 1GiB]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// Size of its disk, as 20GiB [default: the image's]. Another size than the image has now makes the image anew
    #[arg(long, value_name = "SIZE", value_parser = file_system_size)]
    disk: Option<Size>,
    /// A variable of the command's environment; without a value this environment's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// A file of such variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// The directory that the command starts in [default: the image's]
    #[arg(short, long, value_name = "DIR", value_parser = absolute)]
    workdir: Option<String>,
    /// Who the command runs as, as name, uid, name:group or uid:gid [default: the image's, else root]
    #[arg(short, long)]
    user: Option<String>,
    /// End the command after this time, as 30s or 5m [default: never]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    /// The guest's kernel, a vmlinux or bzImage [default: $VOIDRUN_KERNEL, else kernel in the configuration, else this binary's, else the store's]
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// More for the kernel's command line
    #[arg(long = "kernel-args", value_name = "TEXT", default_value_t, hide = true)]
    cmdline: String,
    /// What to run instead of the image's entrypoint; empty: the command alone
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Whether to get the image before
    #[arg(long, value_enum, default_value_t)]
    pull: PullPolicy,
    /// Reserved
    #[arg(short, long, hide = true)]
    volume: Vec<String>,
    /// Docker's; here it is always so
    #[arg(long, hide = true)]
    rm: bool,
    /// Tell what each step has taken, and what the machine has cost, as a line of JSON on standard error
    #[arg(long, hide = true)]
    timings: bool,
    /// The image
    image: String,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum PullPolicy {
    /// If it is not here
    #[default]
    Missing,
    /// Never
    Never,
    /// Even if it is here
    Always,
}

fn cpus(text: &str) -> Result<Cpus, String> {
    let count: u8 = text.parse().map_err(|_| format!("expected a number from 1 to {}", Cpus::MAX))?;
    count.try_into().map_err(|e: vmm::spec::SpecError| e.to_string())
}

fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("expected a path that begins with /".into()) }
}

/// A bare number is seconds, as for timeout(1).
fn timeout(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string());
    }
    humantime::parse_duration(text).map_err(|e| format!("expected a time, as 30, 30s or 5m: {e}"))
}

/// Returns the command's exit code.
pub(super) fn run(args: &Args, mut context: Context) -> Result<u8, CliError> {
    let timings = Timings::new();
    if let Some(volume) = args.volume.first() {
        return Err(CliError::Usage(format!(
            "-v {volume}: a sandbox sees nothing of this machine's files, so there are no volumes; \
             `voidrun cp` copies files into a sandbox and out of it"
        )));
    }
    let terminal = args.interactive && std::io::stdin().is_terminal();
    if args.tty && args.interactive && !terminal {
        return Err(CliError::Usage(
            "-i with -t: standard input is not a terminal; -i alone passes it on as it is".into(),
        ));
    }
    let tty = args.tty || terminal && std::io::stdout().is_terminal();
    if let Some(path) = &args.kernel {
        context.config.kernel = Setting { value: Some(path.clone()), origin: Origin::Flag("--kernel") };
    }

    let store = context.store()?;
    let kernel = Kernel::find(&context.config.kernel, store.root())?;
    let image = image(args, &context, &store)?;
    timings.mark("image");
    let exec = command::exec(args, &image.record.config, tty, |name| std::env::var_os(name))?;
    let sandboxes = Sandboxes::new(store.root());
    let machine = Launch {
        image: &image,
        kernel,
        cpus: args.cpus.unwrap_or(context.config.cpus.value),
        memory: args.memory.unwrap_or(context.config.memory.value).mib(),
        cmdline: &args.cmdline,
    };

    // One thread is enough to move bytes, and starts sooner.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let name = &image.reference.name;
        let failed =
            |source: LaunchError| CliError::Launch { image: name.to_string(), source: source.into() };
        let mut step = |step| timings.mark(step);
        let handle = tokio::select! {
            launched = launch(&sandboxes, machine, &mut step) => launched.map_err(failed)?,
            signal = signals.next() => return Err(CliError::Interrupted { signal, advice: "" }),
        };
        let session = Session { handle: &handle, exec, timeout: args.timeout, timings: &timings };
        let outcome = session.run(&mut signals).await;
        if args.timings {
            timings.print(&handle);
        }
        finish(handle, outcome, args.timeout)
    });
    // The thread that reads standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}

/// Ends the sandbox; returns the exit code.
fn finish(
    handle: Handle,
    outcome: Result<Outcome, CliError>,
    timeout: Option<Duration>,
) -> Result<u8, CliError> {
    if let Err(error) = handle.remove() {
        CliError::from(error).warn();
    }
    Ok(match outcome? {
        Outcome::Exit(exit) => {
            if exit.oom_killed {
                tell(
                    "the sandbox was short of memory and the kernel has killed a process in it: --memory gives it more",
                );
            }
            if exit.timed_out {
                tell_of(timeout);
                return Ok(124);
            }
            // What a guest sends is no exit code before it has been looked at.
            let code = exit.exit_code.or(exit.signal.map(|signal| signal.saturating_add(128)));
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125)
        }
        Outcome::Deadline => {
            tell_of(timeout);
            124
        }
        Outcome::Killed(signal) => signal.exit_code(),
        // As a program that SIGPIPE has ended.
        Outcome::NobodyReads => 128 + 13,
    })
}

fn tell_of(timeout: Option<Duration>) {
    let time = humantime::format_duration(timeout.unwrap_or_default());
    tell(&format!("the command was ended after {time} (--timeout)"));
}

/// The image, pulled before if need be.
fn image(args: &Args, context: &Context, store: &Store) -> Result<Image, CliError> {
    let name = context.name(store, Some(&args.image))?;
    let here = match store.image(&name) {
        Err(StoreError::NotFound(_)) => None,
        found => Some(found?),
    };
    let disk = args.disk.map(|size| size.0);
    let fits = |image: &Image| {
        disk.is_none_or(|size| image.record.size_bytes == size || image.record.recipe.size == Some(size))
    };
    match (args.pull, here) {
        (PullPolicy::Missing | PullPolicy::Never, Some(image)) if fits(&image) => Ok(image),
        (PullPolicy::Never, None) => {
            let missing = StoreError::NotFound(name.to_string());
            Err(Context::as_typed(missing, Some(&args.image)).into())
        }
        (PullPolicy::Never, Some(image)) => Err(CliError::Usage(format!(
            "the file system of {name} has {}: another size needs the image to be made anew, which --pull never forbids",
            Size(image.record.size_bytes)
        ))),
        (PullPolicy::Missing | PullPolicy::Always, _) => {
            let shape = Shape { platform: None, size: args.disk };
            obtain("pull", context, store, Source::Name(name.clone()), None, &shape)?;
            Ok(store.image(&name)?)
        }
    }
}
