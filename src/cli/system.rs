//! `voidrun system df`, `prune`

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use indicatif::BinaryBytes;
use rootfs_builder::reference::ImageName;
use rootfs_builder::store::{Budget, Removal, Removed, Store};
use serde::Serialize;
use serde_json::json;

use super::error::CliError;
use super::{Context, table};
use crate::sandbox::Sandboxes;
use crate::snapshots::{About, Snapshots, SnapshotsError};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Df(DfArgs),
    Prune(PruneArgs),
}

/// Show what takes room on the disk
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun system df
  voidrun system df --json | jq '.[] | {what, bytes}'")]
pub(crate) struct DfArgs {}

/// A part of the store.
#[derive(Serialize)]
struct Part {
    what: &'static str,
    count: usize,
    /// On disk.
    bytes: u64,
}

pub(super) fn run(verb: &Verb, context: &Context) -> Result<(), CliError> {
    match verb {
        Verb::Df(DfArgs {}) => df(context),
        Verb::Prune(args) => prune(args, context),
    }
}

fn df(context: &Context) -> Result<(), CliError> {
    let store = context.store()?;
    // What several have in common counts once: with the snapshot that a sandbox has begun with.
    let mut seen = BTreeSet::new();
    let mut part = |what, dir: &str, ending: &str| {
        let (mut count, mut bytes) = (0, 0);
        for entry in std::fs::read_dir(store.root().join(dir)).into_iter().flatten().flatten() {
            count += usize::from(entry.file_name().to_string_lossy().ends_with(ending));
            bytes += allocated(&entry.path(), &mut seen);
        }
        Part { what, count, bytes }
    };
    let parts = [
        part("images", "images", ".ext4"),
        part("layers", "blobs/sha256", ""),
        part("snapshots", "snapshots", ""),
        part("warm starts", "warm", ""),
        part("sandboxes", "sandboxes", ""),
        part("kernels", "kernels", ""),
        part("unfinished", "ingest", ""),
    ];
    context.print(&parts, |parts| {
        let mut rows = vec![["WHAT", "COUNT", "ON DISK"].map(str::to_owned).to_vec()];
        for part in parts {
            rows.push(vec![
                part.what.to_owned(),
                part.count.to_string(),
                BinaryBytes(part.bytes).to_string(),
            ]);
        }
        let all = parts.iter().map(|part| part.bytes).sum();
        rows.push(vec!["all".to_owned(), String::new(), BinaryBytes(all).to_string()]);
        table(&rows)
    })
}

/// Of a file, or of all in a directory, in bytes. What goes meanwhile does not count, and neither does a file with several names that is
/// among those that were `seen`.
fn allocated(path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> u64 {
    let Ok(found) = path.symlink_metadata() else { return 0 };
    if !found.is_dir() && found.nlink() > 1 && !seen.insert((found.dev(), found.ino())) {
        return 0;
    }
    let mut bytes = found.blocks() * 512;
    if found.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            bytes += allocated(&entry.path(), seen);
        }
    }
    bytes
}

/// Remove what can be had again: cached layers, warm starts, what no name reaches, what killed commands have left
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Sandboxes and snapshots stay, with the images that they are made of: `voidrun rm` and `voidrun snapshot rm` remove them.

Examples:
  voidrun system prune --dry-run
  voidrun system prune --all"
)]
pub(crate) struct PruneArgs {
    /// Also the images that no sandbox and no snapshot is made of
    #[arg(short, long)]
    all: bool,
    /// Only tell what would go
    #[arg(long)]
    dry_run: bool,
}

fn prune(args: &PruneArgs, context: &Context) -> Result<(), CliError> {
    let store = context.store()?;
    let mut removed = Vec::new();
    let unnamed = if args.all { unused(&store)? } else { Vec::new() };
    let count = &mut |removal| removed.push(removal);
    let nothing = Budget { bytes: 0, grace: Duration::ZERO };
    if args.dry_run {
        store.collectable(nothing, &unnamed, count)?;
    } else {
        store.remove(&unnamed, count)?;
        store.collect(nothing, count)?;
    }
    let warm = Snapshots::new(store.root().join("warm"));
    for About { name, record, bytes: freed_bytes } in warm.list()?.0 {
        match if args.dry_run { Ok(()) } else { warm.remove(&name) } {
            Ok(()) => removed.push(Removal { kind: Removed::Warm, name: record.image_name, freed_bytes }),
            // The daemon was faster.
            Err(SnapshotsError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let freed: u64 = removed.iter().map(|removal| removal.freed_bytes).sum();
    let view = json!({ "removed": removed, "freedBytes": freed, "dryRun": args.dry_run });
    context.print(&view, |_| {
        let names = removed.iter().map(|Removal { kind, name, freed_bytes }| {
            let kind = match kind {
                Removed::Reference => "name",
                Removed::Image => "image",
                Removed::Blob => "layer",
                Removed::Leftover => "leftover",
                Removed::Warm => "warm start of",
            };
            format!("{kind} {name}: {}\n", BinaryBytes(*freed_bytes))
        });
        let done = if args.dry_run { "would free" } else { "freed" };
        format!("{}{done} {}", names.collect::<String>(), BinaryBytes(freed))
    })
}

/// The names of images that no sandbox and no snapshot is made of.
fn unused(store: &Store) -> Result<Vec<ImageName>, CliError> {
    let mut used = BTreeSet::new();
    for sandbox in Sandboxes::new(store.root()).list()? {
        match sandbox.read_record() {
            Ok(record) => drop(used.insert(record.image)),
            // It is coming up, or going.
            Err(_) if sandbox.fate().is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let snapshots = Snapshots::new(store.root().join("snapshots")).list()?;
    used.extend(snapshots.0.into_iter().map(|snapshot| snapshot.record.image));
    let images = store.list()?.images.into_iter().map(|image| image.reference);
    Ok(images.filter(|reference| !used.contains(&reference.image)).map(|reference| reference.name).collect())
}
