//! `voidrun images gc`

use std::time::Duration;

use indicatif::BinaryBytes;
use rootfs_builder::store::{Budget, Removed};
use serde_json::json;

use crate::cli::{Context, error::CliError, tell};
use crate::size::Size;

/// Remove what no image needs, and cached layers beyond a budget
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Images that have a name are never removed; their layers are a cache, of which the least
recently used go when the store is larger than the budget. Nothing that was used within the grace time is touched.

Examples:
  voidrun images gc
  voidrun images gc --budget 5GiB --grace 0s"
)]
pub(crate) struct Args {
    /// What the store may take on disk, as 20GiB [default: gc.budget, 20GiB]
    #[arg(long)]
    budget: Option<Size>,
    /// What was used within this time stays, as 30m or 0s [default: gc.grace, 1h]
    #[arg(long, value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let budget = Budget {
        bytes: args.budget.unwrap_or(context.config.gc_budget.value).0,
        grace: args.grace.unwrap_or(context.config.gc_grace.value),
    };
    let mut removed = Vec::new();
    let report = context.store()?.collect(budget, &mut |removal| {
        if !context.json {
            let kind = match removal.kind {
                Removed::Reference => "reference",
                Removed::Image => "image",
                Removed::Blob => "layer",
                Removed::Leftover => "leftover",
                Removed::Warm => "warm start of",
            };
            tell(&format!("removed {kind} {}: {}", removal.name, BinaryBytes(removal.freed_bytes)));
        }
        removed.push(removal);
    })?;
    let view = json!({
        "removed": removed,
        "freedBytes": report.freed_bytes,
        "keptByGraceBytes": report.kept_by_grace_bytes,
        "remainingBytes": report.remaining_bytes,
        "overBudgetBytes": report.over_budget_bytes,
    });
    context.print(&view, |_| {
        let over = match report.over_budget_bytes {
            0 => String::new(),
            over => {
                format!(", {} over the budget: `voidrun images rm` removes images by name", BinaryBytes(over))
            }
        };
        let young = match report.kept_by_grace_bytes {
            0 => String::new(),
            young => format!(
                ", {} stay that were used within the last {}: `voidrun images gc --grace 0s` removes them",
                BinaryBytes(young),
                humantime::format_duration(budget.grace)
            ),
        };
        format!(
            "freed {}, {} remain{young}{over}",
            BinaryBytes(report.freed_bytes),
            BinaryBytes(report.remaining_bytes)
        )
    })
}
