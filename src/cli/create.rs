//! `voidrun create`

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use vmm::spec::Cpus;

use super::environment::{self, Variable};
use super::error::CliError;
use super::image::{self, PullPolicy};
use super::images::pull::file_system_size;
use super::{Context, values, wait_for};
use crate::api::types::{Create, Sandbox};
use crate::client::Client;
use crate::size::{Memory, Size};

/// Make a sandbox that stays until it is removed
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It runs at once and starts no command: the image's entrypoint is not looked at. An image that is not here is
pulled. Prints the sandbox's id.

Examples:
  voidrun create --name dev code
  voidrun create --memory 2g --cpus 2 -e TOKEN -l team=infra debian
  voidrun exec dev python3 -c 'print(6 * 7)'"
)]
pub(crate) struct Args {
    /// What it is called [default: a name that is made up]
    #[arg(long)]
    name: Option<String>,
    /// CPUs, 1 to 32 [default: run.cpus, 1]
    #[arg(long, value_parser = values::cpus)]
    cpus: Option<Cpus>,
    /// Memory, as 512m or 2GiB [default: run.memory, 1GiB]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// Size of its disk, as 20GiB [default: the image's]. Another size than the image has now makes the image anew
    #[arg(long, value_name = "SIZE", value_parser = file_system_size)]
    disk: Option<Size>,
    /// A variable of all its commands; without a value this environment's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// A file of such variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// A label, to find it by
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Stop it this long after each start, as 30m or 8h [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    ttl: Option<Duration>,
    /// Stop it when nothing is done in it for so long, as 30m: no command, no stream, no file transfer [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    idle_timeout: Option<Duration>,
    /// Whether to get the image before
    #[arg(long, value_enum, default_value_t)]
    pull: PullPolicy,
    /// The image [default: default_image in the configuration]
    image: Option<String>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "expected KEY=VALUE".into())
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let text = args.image.as_deref().unwrap_or(&context.config.default_image.value);
    // Here, where the user's credentials and the progress bars are.
    let image = image::get(context, &context.store()?, text, args.disk, args.pull)?;
    let variables = environment::given(&args.env_file, &args.env)?;
    let env = environment::merge(&[], &variables, |name| std::env::var_os(name))?;
    let whole = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let create = Create {
        name: args.name,
        image: Some(image.reference.name.to_string()),
        cpu: args.cpus.map(|cpus| cpus.get().into()),
        mem: args.memory.map(|memory| memory.mib().bytes() >> 20),
        env_vars: Some(env),
        labels: Some(args.label.into_iter().collect()),
        ttl: args.ttl.map(whole),
        idle_timeout: args.idle_timeout.map(whole),
        ..Create::default()
    };
    let advice = "; a sandbox that is coming up comes up all the same: `voidrun ps` shows it";
    let sandbox: Sandbox = wait_for(advice, async {
        let client = Client::connect(&context.config).await?;
        Ok(client.ask(Method::POST, "/sandboxes", &create).await?)
    })?;
    context.print(&sandbox, |sandbox| sandbox.id.clone())
}
