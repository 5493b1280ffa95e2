//! `voidrun daemon`

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use clap::ValueEnum;
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::filter::LevelFilter;

use super::error::CliError;
use super::{Context, wait_for};
use crate::client::Client;
use crate::daemon::{Tcp, chain, loopback, run as serve};

/// Serve the API, and keep the sandboxes. Other commands start it by themselves
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It ends by Ctrl-C or SIGTERM; the sandboxes run on, and the next one finds them again.
VOIDRUN_LOG (error, warn, info, debug, trace) says how much it tells.

Examples:
  voidrun daemon
  voidrun daemon --detach
  voidrun daemon --listen 127.0.0.1:7070 --key-file ~/.config/voidrun/key
  voidrun daemon --log-format json 2>> daemon.log"
)]
pub(crate) struct Args {
    /// How its log is written, on standard error
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Start one in the background unless there is one, and return when it can be asked
    #[arg(long, conflicts_with = "listen")]
    detach: bool,
    /// Serve it on TCP as well, to those who have the key; port 0 is any that is free, which the log tells
    #[arg(long, value_name = "127.0.0.1:PORT", value_parser = loopback, requires = "key_file")]
    listen: Option<SocketAddr>,
    /// The file with the key for it, which nobody else may be able to read
    #[arg(long, value_name = "FILE", requires = "listen")]
    key_file: Option<PathBuf>,
    /// It was started by a command: it leaves when it has nothing to do
    #[arg(long, hide = true)]
    auto: bool,
    /// An open descriptor, to which it tells that it can be asked, or why it cannot
    #[arg(long, hide = true)]
    ready_fd: Option<RawFd>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

pub(super) fn run(args: &Args, context: Context) -> Result<(), CliError> {
    if args.detach {
        return wait_for("", async { Ok(Client::connect(&context.config).await.map(drop)?) });
    }
    let tcp = args.listen.zip(args.key_file.clone()).map(|(address, key_file)| Tcp { address, key_file });
    let given = given()?;
    // SAFETY: whoever names a descriptor hands it over, before anything else is open.
    let mut ready = args.ready_fd.map(|number| File::from(unsafe { OwnedFd::from_raw_fd(number) }));
    if args.auto {
        // Neither Ctrl-C nor the end of the terminal is meant for it. It fails where the process leads a group already.
        let _ = rustix::process::setsid();
        let _ = std::env::set_current_dir("/");
    }
    write_log(args.log_format);
    let limit = getrlimit(Resource::Nofile);
    // A connection, or a sandbox, takes one or two. What is not granted is missed later, if at all.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });

    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)?;
    let result = runtime.block_on(serve(context.config, args.auto, given, tcp, &mut ready));
    runtime.shutdown_background();
    if let (Err(error), Some(mut ready)) = (&result, ready) {
        // Nothing is to be done when nobody waits for it any more.
        let _ = writeln!(ready, "{}", chain(error));
    }
    Ok(result?)
}

/// The socket that systemd has opened for us, if it has (sd_listen_fds(3)).
fn given() -> Result<Option<UnixListener>, CliError> {
    let mut descriptors = sd_notify::listen_fds().map_err(CliError::Runtime)?;
    let Some(number) = descriptors.next() else { return Ok(None) };
    // SAFETY: by the protocol it is ours alone, and is named once.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(number) });
    let is_one = listener.local_addr().is_ok() && sockopt::socket_acceptconn(&listener).unwrap_or(false);
    if descriptors.next().is_some() || !is_one {
        return Err(CliError::Usage(
            "the environment (LISTEN_FDS) names other descriptors than one Unix stream socket that listens: \
             the unit has to have one ListenStream, a path"
                .into(),
        ));
    }
    Ok(Some(listener))
}

fn write_log(format: LogFormat) {
    let level = std::env::var("VOIDRUN_LOG").ok().and_then(|level| level.parse().ok());
    let log = tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .with_target(false)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}
