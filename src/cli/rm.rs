//! `voidrun rm`

use hyper::Method;
use serde_json::{Value, json};

use super::error::CliError;
use super::{Context, wait_for};
use crate::api::types::Sandbox;
use crate::client::{Client, segment};

/// Remove sandboxes, with all that is on their disks
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun rm dev
  voidrun rm --force $(voidrun ps --all --quiet)")]
pub(crate) struct Args {
    /// Those that run as well
    #[arg(short, long)]
    force: bool,
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let mut removed: Vec<String> = Vec::new();
    let result = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        for name in &args.sandboxes {
            let sandbox: Sandbox =
                client.ask(Method::GET, &format!("/sandboxes/{}", segment(name)), &()).await?;
            if sandbox.is_up() && !args.force {
                let state = if sandbox.lost { "lost, and its machine runs" } else { sandbox.state.as_str() };
                return Err(CliError::Usage(format!(
                    "the sandbox {name} is {state}: stop it before, or remove it with --force"
                )));
            }
            let _: Value = client.ask(Method::DELETE, &format!("/sandboxes/{}", sandbox.id), &()).await?;
            removed.push(sandbox.id);
        }
        Ok(())
    });
    // Those before the one that could not be removed are gone.
    if result.is_ok() || !removed.is_empty() {
        let names = args.sandboxes[..removed.len()].join("\n");
        context.print(&json!({ "removed": removed }), |_| names)?;
    }
    result
}
