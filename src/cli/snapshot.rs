//! `voidrun snapshot`

use clap::Subcommand;
use hyper::Method;
use indicatif::BinaryBytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CliError;
use super::{Context, create, ps, table, wait_for};
use crate::api::snapshots::{Name, Snapshot, Take};
use crate::client::{Client, segment};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Create(CreateArgs),
    Ls(LsArgs),
    Inspect(InspectArgs),
    Rm(RmArgs),
}

/// Take a snapshot of a sandbox: its memory, what runs in it, and its disk
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The sandbox runs, is paused or sleeps; it stands still meanwhile, and goes on as it was. Sandboxes made from the snapshot
go on from that moment, each with a name, a clock, random numbers, a disk and a network of its own. What the commands in it know, a
secret too, is in the snapshot and in each of them.

Examples:
  voidrun snapshot create dev ready
  voidrun create --from-snapshot ready --name a
  voidrun run --from-snapshot ready python3 -c 'print(6 * 7)'"
)]
pub(crate) struct CreateArgs {
    /// A label, to find it by
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = create::label)]
    label: Vec<(String, String)>,
    /// A name, an id, or the beginning of one
    sandbox: String,
    /// What the snapshot is to be called
    name: String,
}

/// List the snapshots
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun snapshot ls
  voidrun snapshot ls --json | jq -r '.[].name'")]
pub(crate) struct LsArgs {
    /// Names alone
    #[arg(short, long)]
    quiet: bool,
}

/// Show all that is known of snapshots, as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun snapshot inspect ready")]
pub(crate) struct InspectArgs {
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Remove snapshots; sandboxes that were made from them stay
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun snapshot rm ready")]
pub(crate) struct RmArgs {
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) fn run(verb: Verb, context: &Context) -> Result<(), CliError> {
    match verb {
        Verb::Create(args) => take(args, context),
        Verb::Ls(args) => list(&args, context),
        Verb::Inspect(args) => {
            let pretty = |found: &Vec<Snapshot>| serde_json::to_string_pretty(found).unwrap_or_default();
            each(context, &Method::GET, &args.names, pretty)
        }
        Verb::Rm(args) => {
            let names = |removed: &Vec<Name>| lines(removed.iter().map(|removed| &*removed.name));
            each(context, &Method::DELETE, &args.names, names)
        }
    }
}

fn take(args: CreateArgs, context: &Context) -> Result<(), CliError> {
    let labels = Some(args.label.into_iter().collect());
    let path = format!("/sandboxes/{}/snapshots", segment(&args.sandbox));
    let taken: Snapshot = wait_for("; a snapshot that is being taken is taken all the same", async {
        let client = Client::connect(&context.config).await?;
        Ok(client.ask(Method::POST, &path, &Take { name: args.name, labels }).await?)
    })?;
    context.print(&taken, |taken| taken.name.clone())
}

fn list(args: &LsArgs, context: &Context) -> Result<(), CliError> {
    let found: Vec<Snapshot> = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        Ok(client.ask(Method::GET, "/snapshots", &()).await?)
    })?;
    context.print(&found, |found| {
        if args.quiet {
            return lines(found.iter().map(|found| &*found.name));
        }
        let head = ["NAME", "IMAGE", "CPUS", "MEMORY", "ON DISK", "CREATED", "OF"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(found.iter().map(|snapshot| {
            vec![
                snapshot.name.clone(),
                snapshot.image.clone(),
                snapshot.cpu.to_string(),
                format!("{} MiB", snapshot.mem),
                BinaryBytes(snapshot.bytes).to_string(),
                ps::age(&snapshot.created_at),
                snapshot.sandbox.clone(),
            ]
        }));
        table(&rows)
    })
}

fn lines<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join("\n")
}

/// One after the other, up to the first that fails; what was done before is printed all the same.
fn each<T: Serialize + DeserializeOwned>(
    context: &Context,
    method: &Method,
    names: &[String],
    text: impl FnOnce(&Vec<T>) -> String,
) -> Result<(), CliError> {
    let mut done = Vec::new();
    let result = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        for name in names {
            done.push(client.ask(method.clone(), &format!("/snapshots/{}", segment(name)), &()).await?);
        }
        Ok(())
    });
    if result.is_ok() || !done.is_empty() {
        context.print(&done, text)?;
    }
    result
}
