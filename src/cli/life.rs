//! `voidrun stop`, `start`, `pause`, `resume`, `sleep`, `wake`

use std::time::Duration;

use hyper::Method;
use serde::Serialize;

use super::error::CliError;
use super::{Context, values, wait_for};
use crate::api::types::{Sandbox, Stop};
use crate::client::{Client, segment};

/// Power sandboxes off; their disks are kept
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun stop dev
  voidrun stop --timeout 30s dev test")]
pub(crate) struct StopArgs {
    /// How long its processes may take to end by themselves [default: 2s]
    #[arg(short, long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

/// Start sandboxes that are stopped, on the disks they have
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun start dev")]
pub(crate) struct StartArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

/// Let sandboxes stand still; their memory is kept
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun pause dev")]
pub(crate) struct PauseArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

/// Let paused sandboxes go on
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun resume dev")]
pub(crate) struct ResumeArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

/// Write the memory of sandboxes to the disk and end their machines; `wake` goes on from there
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A sandbox that sleeps takes no memory and no processor, and on the disk what its memory held. What runs in it goes on when it
wakes, with the right time of day; connections, and commands that somebody waits for, lose their streams. `stop` gives the memory up.

Examples:
  voidrun sleep dev
  voidrun wake dev"
)]
pub(crate) struct SleepArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

/// Let sandboxes go on where they fell asleep
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun wake dev")]
pub(crate) struct WakeArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

pub(super) fn stop(args: &StopArgs, context: &Context) -> Result<(), CliError> {
    let whole = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let stop = Stop { timeout: args.timeout.map(whole) };
    each(context, &args.sandboxes, "stop", &stop)
}

pub(super) fn start(args: &StartArgs, context: &Context) -> Result<(), CliError> {
    each(context, &args.sandboxes, "start", &())
}

pub(super) fn pause(args: &PauseArgs, context: &Context) -> Result<(), CliError> {
    each(context, &args.sandboxes, "pause", &())
}

pub(super) fn resume(args: &ResumeArgs, context: &Context) -> Result<(), CliError> {
    each(context, &args.sandboxes, "resume", &())
}

pub(super) fn sleep(args: &SleepArgs, context: &Context) -> Result<(), CliError> {
    each(context, &args.sandboxes, "sleep", &())
}

pub(super) fn wake(args: &WakeArgs, context: &Context) -> Result<(), CliError> {
    each(context, &args.sandboxes, "wake", &())
}

/// One after the other, up to the first that fails. Prints them as they were called, as docker does; also those before it.
fn each(context: &Context, sandboxes: &[String], verb: &str, body: &impl Serialize) -> Result<(), CliError> {
    let mut done: Vec<Sandbox> = Vec::new();
    let result = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        for sandbox in sandboxes {
            let path = format!("/sandboxes/{}/{verb}", segment(sandbox));
            done.push(client.ask(Method::POST, &path, body).await?);
        }
        Ok(())
    });
    if result.is_ok() || !done.is_empty() {
        context.print(&done, |done| sandboxes[..done.len()].join("\n"))?;
    }
    result
}
