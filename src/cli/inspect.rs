//! `voidrun inspect`

use hyper::Method;

use super::error::CliError;
use super::{Context, wait_for, write_out};
use crate::api::types::Sandbox;
use crate::client::{Client, segment};

/// Show all of sandboxes, as a JSON array
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun inspect dev
  voidrun inspect dev | jq -r '.[0].state'")]
pub(crate) struct Args {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let sandboxes: Vec<Sandbox> = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        let mut sandboxes = Vec::new();
        for sandbox in &args.sandboxes {
            let path = format!("/sandboxes/{}", segment(sandbox));
            sandboxes.push(client.ask(Method::GET, &path, &()).await?);
        }
        Ok(sandboxes)
    })?;
    // JSON, whoever reads it.
    write_out(serde_json::to_string_pretty(&sandboxes).map_err(|e| CliError::Output(e.into()))?)
}
