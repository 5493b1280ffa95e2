//! `voidrun images ls`

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::progress::short;
use crate::cli::{Context, error::CliError, table, tell};
use crate::images::View;

/// List the images
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun images ls
  voidrun images ls --json | jq -r '.images[].reference'")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Listing {
    images: Vec<View>,
    /// What could not be shown, and why.
    damaged: Vec<String>,
}

pub(super) fn run(_: &Args, context: &Context) -> Result<(), CliError> {
    let found = context.store()?.list()?;
    let listing = Listing {
        images: found.images.iter().map(View::of).collect(),
        damaged: found.damaged.iter().map(ToString::to_string).collect(),
    };
    if !context.json {
        for problem in &listing.damaged {
            tell(&format!("warning: {problem}"));
        }
    }
    context.print(&listing, |listing| {
        let mut rows = vec![["NAME", "DIGEST", "PLATFORM", "ON DISK", "SIZE"].map(str::to_owned).to_vec()];
        for image in &listing.images {
            rows.push(vec![
                image.reference.clone(),
                short(&image.digest),
                image.platform.clone(),
                BinaryBytes(image.allocated_bytes).to_string(),
                BinaryBytes(image.size_bytes).to_string(),
            ]);
        }
        table(&rows)
    })
}
