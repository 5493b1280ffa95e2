//! `voidrun run`

mod command;
mod timings;

use std::path::PathBuf;

use super::Context;
use super::error::CliError;
use super::flags::{Machine, Process, Streams};
use super::port::{Published, tell_picked};
use hyper::Method;

use super::session::{self, Command, Place, Session, Stdin, window_size};
use crate::api::types::{Create, Exec, Sandbox};
use crate::client::Client;
use crate::config::{Origin, Setting};
use timings::Timings;

/// Start a sandbox and run one command in it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The sandbox is a virtual machine with a disk of its own. Nothing of it remains, unless --name keeps it: then it runs on, and
exec, stop and rm know it by that name. An image that is not here is pulled.

With -d the command is the sandbox's job: `logs` shows what it has written, `attach` what it writes, the sandbox stops when
it has ended, and `start` runs it again.

With -i, when standard input and standard output are terminals, the command gets a terminal (as with docker's -it); without
-i it gets none unless -t asks for it. Ctrl-C goes to the command, a second one ends the sandbox.

The exit code is the command's; 128+N if signal N has ended it; 124 at --timeout; 125 if voidrun has failed; 126 if the
command cannot be run, and 127 if it is not there.

Examples:
  voidrun run code python3 -c 'print(6 * 7)'
  voidrun run -i debian bash
  voidrun run -i --name dev code bash
  voidrun run -d --name web code python3 -m http.server
  voidrun run -p 8080:8000 code python3 -m http.server    # reached at http://127.0.0.1:8080
  voidrun run --from-snapshot ready python3 app.py
  voidrun run --memory 2g --cpus 2 --timeout 10m -e TOKEN -w /src code make test
  tar c . | voidrun run -i code tar t"
)]
pub(crate) struct Args {
    #[command(flatten)]
    streams: Streams,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    process: Process,
    #[command(flatten)]
    published: Published,
    /// The guest's kernel, a vmlinux or bzImage [default: $VOIDRUN_KERNEL, else kernel in the configuration, else this binary's, else the store's]
    #[arg(long, value_name = "PATH", conflicts_with = "from_snapshot")]
    kernel: Option<PathBuf>,
    /// More for the kernel's command line
    #[arg(long = "kernel-args", value_name = "TEXT", hide = true, conflicts_with = "from_snapshot")]
    cmdline: Option<String>,
    /// What to run instead of the image's entrypoint; empty: the command alone
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Reserved
    #[arg(short, long, hide = true)]
    volume: Vec<String>,
    /// Keep the sandbox, and call it this
    #[arg(long)]
    name: Option<String>,
    /// Remove it when the command has ended, with --name and --detach as well
    #[arg(long)]
    rm: bool,
    /// Print the sandbox's id and leave the command to itself: `logs` shows what it writes, and the sandbox stops with it
    #[arg(short, long)]
    detach: bool,
    /// Tell what each step has taken, and what the machine has cost, as a line of JSON on standard error
    #[arg(long, hide = true)]
    timings: bool,
    /// The image; with --from-snapshot there is none, and the command begins here
    #[arg(required_unless_present = "from_snapshot")]
    image: Option<String>,
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
    let ephemeral = !args.detach && (args.name.is_none() || args.rm);
    if !ephemeral && (args.kernel.is_some() || args.cmdline.is_some()) {
        return Err(CliError::Usage(
            "--kernel with --name or --detach: the daemon has its kernel from its environment (VOIDRUN_KERNEL) or the configuration".into(),
        ));
    }
    if let Some(path) = &args.kernel {
        context.config.kernel = Setting { value: Some(path.clone()), origin: Origin::Flag("--kernel") };
    }
    // What is wrong with the command line is told before an image is pulled.
    let exec = args.process.exec(Vec::new())?;
    let exec = if args.detach {
        // A terminal is enough for its input: `attach` has it.
        if args.streams.interactive && !args.streams.tty {
            return Err(CliError::Usage(
                "--interactive with --detach: nobody is there for standard input; -t gives a terminal, for `voidrun attach`".into(),
            ));
        }
        Exec { tty: args.streams.tty.then(window_size), ..exec }
    } else {
        args.streams.connect(exec)?
    };
    let create = Create {
        name: args.name.clone(),
        ephemeral: Some(ephemeral),
        kernel: if ephemeral && args.machine.from_snapshot.is_none() { context.kernel()? } else { None },
        kernel_args: args.cmdline.clone(),
        ports: Some(args.published.ports.clone()).filter(|ports| !ports.is_empty()),
        // For later commands as well.
        env_vars: Some(args.process.environment.of_sandbox()?),
        ..Create::default()
    };

    let image = args.machine.image(&context, args.image.as_deref().unwrap_or_default())?;
    timings.mark("image");
    let words = command::words(args, image.as_ref().map(|image| &image.record.config))?;
    let what = words.join(" ");
    let exec = exec.with(words);
    let create = args.machine.create(&context, image.as_ref(), create)?;
    if args.detach {
        let auto_remove = args.rm.then_some(true);
        let create = Create { job: Some(exec), auto_remove, ephemeral: None, ..create };
        let sandbox: Sandbox = super::wait_for(super::create::ADVICE, async {
            let client = Client::connect(&context.config).await?;
            Ok(client.ask(Method::POST, "/sandboxes", &create).await?)
        })?;
        args.machine.tell_start(&sandbox);
        tell_picked(&args.published.ports, &sandbox.ports);
        context.print(&sandbox, |sandbox| sandbox.id.clone())?;
        return Ok(0);
    }
    session::block_on(async |signals| {
        let made = async { Place::make(Client::connect(&context.config).await?, &create).await };
        let place = signals.guard(made, if ephemeral { "" } else { super::create::ADVICE }).await?;
        args.machine.tell_start(place.sandbox());
        tell_picked(&args.published.ports, &place.sandbox().ports);
        timings.mark("created");
        let mark = |step| timings.mark(step);
        let stdin = Stdin::interactive(args.streams.interactive);
        let session =
            Session { mark: &mark, ..Session::new(place.remote(), Command::Run(exec), what, stdin) };
        let outcome = session.run(signals).await;
        if args.timings {
            timings.print(place.remote()).await;
        }
        place.leave().await;
        Ok(outcome?.exit_code(args.process.timeout))
    })
}
