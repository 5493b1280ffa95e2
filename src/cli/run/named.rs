//! `voidrun run --name`: in a sandbox of the daemon, which stays.

use hyper::Method;
use protocol::Command as Words;
use rootfs_builder::store::Image;
use serde_json::Value;

use super::{Args, command};
use crate::api::types::{Create, Exec, Sandbox};
use crate::cli::error::CliError;
use crate::cli::session::{Command, Session, Signals, Stdin};
use crate::cli::{Context, environment};
use crate::client::{Client, ClientError, Remote};

/// Returns the command's exit code.
pub(super) fn run(
    args: &Args,
    name: &str,
    context: &Context,
    image: &Image,
    tty: bool,
) -> Result<u8, CliError> {
    if args.kernel.is_some() || !args.cmdline.is_empty() {
        return Err(CliError::Usage(
            "--kernel with --name: the daemon has its kernel from its environment (VOIDRUN_KERNEL) or the configuration".into(),
        ));
    }
    let here = |name: &str| std::env::var_os(name);
    let exec = command::exec(args, &image.record.config, tty, here)?;
    let words = match exec.command {
        Words::Argv(words) => words,
        Words::Shell(line) => vec![line],
    };
    let what = words.join(" ");
    let mut words = words.into_iter();
    let exec = Exec {
        command: words.next().unwrap_or_default(),
        args: Some(words.collect()),
        cwd: exec.cwd,
        env: Some(exec.env),
        user: exec.user,
        timeout: args.timeout.map(|timeout| timeout.as_secs_f64()),
        tty: exec.tty,
        stdin: Some(exec.stdin),
    };
    let variables = environment::given(&args.env_file, &args.env)?;
    let create = Create {
        name: Some(name.to_owned()),
        image: Some(image.reference.name.to_string()),
        cpu: args.cpus.map(|cpus| cpus.get().into()),
        mem: args.memory.map(|memory| memory.mib().bytes() >> 20),
        // For later commands as well.
        env_vars: Some(environment::merge(&[], &variables, here)?),
        ..Create::default()
    };

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let made = async {
            let client = Client::connect(&context.config).await?;
            let sandbox: Sandbox = client.ask(Method::POST, "/sandboxes", &create).await?;
            Ok::<_, ClientError>(Remote { client, sandbox: sandbox.id })
        };
        let advice = "; a sandbox that is coming up comes up all the same: `voidrun ps` shows it";
        let remote = tokio::select! {
            made = made => made?,
            signal = signals.next() => return Err(CliError::Interrupted { signal, advice }),
        };
        let (stdin, timeout) = (Stdin::interactive(args.interactive), args.timeout);
        let command = Command::There { remote: &remote, exec };
        let session = Session { command, what, stdin, tty, timeout, transcript: None, mark: &|_| {} };
        let outcome = session.run(&mut signals).await;
        if args.rm {
            let path = format!("/sandboxes/{}", remote.sandbox);
            if let Err(error) = remote.client.ask::<Value>(Method::DELETE, &path, &()).await {
                CliError::from(error).warn();
            }
        }
        Ok(outcome?.exit_code(timeout))
    });
    // The thread that reads standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}
