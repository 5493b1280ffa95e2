//! `voidrun images pull`

use std::io::IsTerminal as _;
use std::path::Path;

use rootfs_builder::convert::Limits;
use rootfs_builder::image::Platform;
use rootfs_builder::pull::{PullOptions, Pulled, pull};
use rootfs_builder::reference::{ImageName, LocalName};
use rootfs_builder::source::{Input, Local, Source};
use rootfs_builder::store::Store;

use crate::cli::progress::Display;
use crate::cli::{Context, error::CliError, tell, wait_for};
use crate::images::View;
use crate::size::{InvalidSize, Size};

const CONTINUES: &str = ": what has arrived is kept, the same command continues";

/// Pull an image and make a root file system of it
#[derive(Debug, clap::Args)]
#[command(after_help = "Sources:
  python:3.12, ghcr.io/owner/name@sha256:...   a registry (docker's short names work)
  oci:PATH[:TAG]                               an OCI layout, a directory or a tar
  docker-archive:PATH[:REFERENCE]              what `docker save` writes
  -                                            either tar, from standard input

Examples:
  voidrun images pull python:3.12
  voidrun images pull oci:./build/tool.oci.tar.zst --name tool
  docker save tool | voidrun images pull - --name tool
  voidrun images pull python:3.12 --size 40GiB")]
pub(crate) struct Args {
    /// Where from; without it the default image
    source: Option<String>,
    /// The name to give it [default: the reference, or the file's name]
    #[arg(long)]
    name: Option<LocalName>,
    #[command(flatten)]
    shape: Shape,
}

/// What can be chosen of any image.
#[derive(Debug, clap::Args)]
pub(crate) struct Shape {
    /// Which of a multi-platform image, as linux/arm64 [default: this machine's, or that of the image that is here]
    #[arg(long)]
    pub(in crate::cli) platform: Option<Platform>,
    /// The file system's size, as 10GiB; it is sparse [default: the larger of 10 GiB and twice the content]
    #[arg(long, value_parser = file_system_size)]
    pub(in crate::cli) size: Option<Size>,
    /// Only to convert the image that is here again.
    #[arg(skip)]
    pub(in crate::cli) again: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let store = context.store()?;
    let text = args.source.as_deref().unwrap_or(&context.config.default_image.value);
    let source = Source::parse(text, |text| context.name(&store, Some(text)));
    if is_path(text, source.as_ref().ok()) {
        return Err(CliError::Usage(format!(
            "{text:?} is a path: did you mean oci:{text}, docker-archive:{text}, or images import NAME {text}?"
        )));
    }
    let source = source?;
    fetch("pull", context, &store, source, args.name.clone(), &args.shape)
}

/// Is `text` the path of an image rather than its name? An archive's name may read as a reference.
fn is_path(text: &str, source: Option<&Source>) -> bool {
    match source {
        None => Path::new(text).exists(),
        Some(Source::Name(ImageName::Registry { .. })) => {
            [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| text.ends_with(end))
                && Path::new(text).is_file()
        }
        Some(_) => false,
    }
}

/// A size that ext4 can have, told before anything is fetched.
pub(in crate::cli) fn file_system_size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|e: InvalidSize| e.to_string())?;
    if (8 << 20..16 << 40).contains(&size.0) {
        Ok(size)
    } else {
        Err(format!("{size} is no file system's size: expected at least 8MiB and less than 16TiB"))
    }
}

/// Pulls, draws the progress, prints the result.
pub(super) fn fetch(
    verb: &'static str,
    context: &Context,
    store: &Store,
    source: Source,
    name: Option<LocalName>,
    shape: &Shape,
) -> Result<(), CliError> {
    let pulled = obtain(verb, context, store, source, name, shape)?;
    let name = pulled.reference.name;
    if !context.json && !pulled.converted && pulled.replaced.is_none() {
        tell(&format!("{name}: already here"));
    }
    let view = View::of(&store.image(&name)?);
    context.print(&view, |view| format!("{} {}", view.reference, view.digest))
}

/// Pulls and draws the progress.
pub(in crate::cli) fn obtain(
    verb: &'static str,
    context: &Context,
    store: &Store,
    source: Source,
    name: Option<LocalName>,
    shape: &Shape,
) -> Result<Pulled, CliError> {
    let from_stdin = matches!(source, Source::Local(Local { input: Input::Stdin, .. }));
    if from_stdin && std::io::stdin().is_terminal() {
        return Err(CliError::Usage(
            "standard input is a terminal: name a file, or pipe an archive in".into(),
        ));
    }
    let registry = context.registry()?;
    let display = Display::new(context.json);
    let what = source.to_string();
    let options = PullOptions {
        name: name.map(ImageName::from),
        platform: shape.platform.clone(),
        size: shape.size.map(|size| size.0),
        again: shape.again,
        limits: Limits::default(),
    };
    // What an archive holds is known at its end only; everything else comes layer by layer.
    let advice = match &source {
        Source::Local(Local { input: Input::Path(path), .. }) if path.is_dir() => CONTINUES,
        Source::Local(_) => ": nothing of the archive is kept, the same command starts over",
        Source::Name(_) => CONTINUES,
    };
    let result = wait_for(advice, async {
        let pulled = pull(store, &registry, source, options, &|event| display.show(event)).await;
        pulled.map_err(|source| CliError::Pull { verb, what, source: source.into() })
    });
    display.finish();
    let pulled = result?;
    if let Some(before) = pulled.replaced.filter(|_| !context.json) {
        tell(&format!("{} was {before} until now", pulled.reference.name));
    }
    Ok(pulled)
}
