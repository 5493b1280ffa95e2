//! `voidrun images inspect`

use crate::cli::{Context, error::CliError};
use crate::images::View;

/// Show what is known of an image, as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun images inspect python:3.12
  voidrun images inspect code --json | jq -r .rootfs")]
pub(crate) struct Args {
    /// The image; without it the default image
    reference: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let store = context.store()?;
    let name = context.name(&store, args.reference.as_deref())?;
    let view =
        View::of(&store.find(&name).map_err(|e| crate::images::as_typed(e, args.reference.as_deref()))?);
    context.print(&view, |view| serde_json::to_string_pretty(view).unwrap_or_default())
}
