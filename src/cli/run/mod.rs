//! `voidrun run`

mod command;
mod named;
mod timings;

use std::path::PathBuf;
use std::time::Duration;

use vmm::spec::Cpus;

use super::environment::Variable;
use super::error::CliError;
use super::image::{self, PullPolicy};
use super::images::pull::file_system_size;
use super::session::{Command, Session, Signals, Stdin, wants_terminal};
use super::{Context, values};
use crate::config::{Origin, Setting};
use crate::sandbox::{Kernel, Launch, LaunchError, Record, Sandboxes, launch};
use crate::size::{Memory, Size};
use timings::Timings;

/// Start a sandbox and run one command in it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The sandbox is a virtual machine with a disk of its own. Nothing of it remains, unless --name keeps it: then it runs on, and
exec, stop and rm know it by that name. An image that is not here is pulled.

With -i, when standard input and standard output are terminals, the command gets a terminal (as with docker's -it); without
-i it gets none unless -t asks for it. Ctrl-C goes to the command, a second one ends the sandbox.

The exit code is the command's; 128+N if signal N has ended it; 124 at --timeout; 125 if voidrun has failed; 126 if the
command cannot be run, and 127 if it is not there.

Examples:
  voidrun run code python3 -c 'print(6 * 7)'
  voidrun run -i debian bash
  voidrun run -i --name dev code bash
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
    #[arg(long, value_parser = values::cpus)]
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
    #[arg(short, long, value_name = "DIR", value_parser = values::absolute)]
    workdir: Option<String>,
    /// Who the command runs as, as name, uid, name:group or uid:gid [default: the image's, else root]
    #[arg(short, long)]
    user: Option<String>,
    /// End the command after this time, as 30s or 5m [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
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
    /// Keep the sandbox, and call it this
    #[arg(long)]
    name: Option<String>,
    /// Remove it when the command has ended, with --name as well
    #[arg(long)]
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

/// Returns the command's exit code.
pub(super) fn run(args: &Args, mut context: Context) -> Result<u8, CliError> {
    let timings = Timings::new();
    if let Some(volume) = args.volume.first() {
        return Err(CliError::Usage(format!(
            "-v {volume}: a sandbox sees nothing of this machine's files, so there are no volumes; \
             `voidrun cp` copies files into a sandbox and out of it"
        )));
    }
    let tty = wants_terminal(args.interactive, args.tty)?;
    if let Some(path) = &args.kernel {
        context.config.kernel = Setting { value: Some(path.clone()), origin: Origin::Flag("--kernel") };
    }

    let store = context.store()?;
    if let Some(name) = &args.name {
        let image = image::get(&context, &store, &args.image, args.disk, args.pull)?;
        return named::run(args, name, &context, &image, tty);
    }
    let kernel = Kernel::find(&context.config.kernel, store.root())?;
    let image = image::get(&context, &store, &args.image, args.disk, args.pull)?;
    timings.mark("image");
    let exec = command::exec(args, &image.record.config, tty, |name| std::env::var_os(name))?;
    let sandboxes = Sandboxes::new(store.root());
    let cpus = args.cpus.unwrap_or(context.config.cpus.value);
    let memory = args.memory.unwrap_or(context.config.memory.value).mib();
    let record = Record::new(&image, &kernel, cpus, memory);
    let machine = Launch { record: &record, rootfs: &image.rootfs, kernel, cmdline: &args.cmdline };

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
        let what = match &exec.command {
            protocol::Command::Argv(words) => words.join(" "),
            protocol::Command::Shell(line) => line.clone(),
        };
        let stdin = Stdin::interactive(exec.stdin);
        let (tty, timeout) = (exec.tty.is_some(), args.timeout);
        let command = Command::Here { handle: &handle, exec };
        let mark = |step| timings.mark(step);
        let session = Session { command, what, stdin, tty, timeout, transcript: None, mark: &mark };
        let outcome = session.run(&mut signals).await;
        if args.timings {
            timings.print(&handle);
        }
        if let Err(error) = handle.remove() {
            CliError::from(error).warn();
        }
        Ok(outcome?.exit_code(timeout))
    });
    // The thread that reads standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}
