//! `voidrun images rm`

use indicatif::BinaryBytes;
use rootfs_builder::reference::NameError;
use rootfs_builder::store::{Removed, StoreError};
use serde_json::json;

use crate::cli::{Context, error::CliError};

/// Remove images, and what only they needed
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun images rm python:3.12
  voidrun images rm tool team/tool:v2")]
pub(crate) struct Args {
    /// The images
    #[arg(required = true)]
    references: Vec<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let store = context.store()?;
    let mut names = Vec::new();
    for text in &args.references {
        let name = context.name(&store, Some(text)).map_err(|error| match error {
            NameError::DefaultImage => StoreError::NotFound(text.clone()).into(),
            error => CliError::from(error),
        })?;
        if !store.has_reference(&name) {
            return Err(crate::images::as_typed(StoreError::NotFound(name.to_string()), Some(text)).into());
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut removed = Vec::new();
    store.remove(&names, &mut |removal| removed.push(removal))?;
    let freed: u64 = removed.iter().map(|removal| removal.freed_bytes).sum();
    context.print(&json!({ "removed": removed, "freedBytes": freed }), |_| {
        let references = removed.iter().filter(|removal| removal.kind == Removed::Reference);
        let lines = references.map(|removal| format!("removed {}", removal.name));
        lines.chain([format!("freed {}", BinaryBytes(freed))]).collect::<Vec<_>>().join("\n")
    })
}
