//! `voidrun create`

use std::time::Duration;

use hyper::Method;

use super::error::CliError;
use super::flags::{Environment, Machine};
use super::port::{Published, tell_picked};
use super::{Context, values, wait_for};
use crate::api::types::{Create, Sandbox};
use crate::client::Client;

/// Where the making of a sandbox that is kept is interrupted.
pub(super) const ADVICE: &str = "; a sandbox that is coming up comes up all the same: `voidrun ps` shows it";

/// Make a sandbox that stays until it is removed
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It runs at once and starts no command: the image's entrypoint is not looked at. An image that is not here is
pulled. Prints the sandbox's id.

Examples:
  voidrun create --name dev code
  voidrun create --memory 2g --cpus 2 -e TOKEN -l team=infra debian
  voidrun create --name web -p 8080:80 -p 3000 code
  voidrun create --from-snapshot ready --name a
  voidrun create --auto-sleep --idle-timeout 10m --name dev code
  voidrun exec dev python3 -c 'print(6 * 7)'"
)]
pub(crate) struct Args {
    /// What it is called [default: a name that is made up]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    environment: Environment,
    #[command(flatten)]
    published: Published,
    /// A label, to find it by
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Stop it this long after each start, as 30m or 8h [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    ttl: Option<Duration>,
    /// Stop it when nothing is done in it for so long, as 30m: no command, no stream, no file transfer [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    idle_timeout: Option<Duration>,
    /// Put it to sleep instead after --idle-timeout, and wake it when something is asked of it
    #[arg(long)]
    auto_sleep: bool,
    /// The image [default: default_image in the configuration]
    #[arg(conflicts_with = "from_snapshot")]
    image: Option<String>,
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "expected KEY=VALUE".into())
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let text = args.image.as_deref().unwrap_or(&context.config.default_image.value);
    let image = args.machine.image(context, text)?;
    let whole = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let create = Create {
        name: args.name,
        env_vars: Some(args.environment.of_sandbox()?),
        labels: Some(args.label.into_iter().collect()),
        ports: Some(args.published.ports.clone()).filter(|ports| !ports.is_empty()),
        ttl: args.ttl.map(whole),
        idle_timeout: args.idle_timeout.map(whole),
        auto_sleep: args.auto_sleep.then_some(true),
        ..Create::default()
    };
    let create = args.machine.create(context, image.as_ref(), create)?;
    let sandbox: Sandbox = wait_for(ADVICE, async {
        let client = Client::connect(&context.config).await?;
        Ok(client.ask(Method::POST, "/sandboxes", &create).await?)
    })?;
    args.machine.tell_start(&sandbox);
    tell_picked(&args.published.ports, &sandbox.ports);
    context.print(&sandbox, |sandbox| sandbox.id.clone())
}
