//! `voidrun images import`

use rootfs_builder::reference::LocalName;
use rootfs_builder::source::{Format, Input, Local, Source};

use super::pull::{Shape, fetch};
use crate::cli::{Context, error::CliError};

/// Make an image of a tar: an OCI layout or what `docker save` writes, compressed or not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun images import tool tool.oci.tar.zst
  docker save tool | voidrun images import tool

The name is a local one: it never means an image of a registry, and comes before one of the same name.")]
pub(crate) struct Args {
    /// The name to give it, as tool or team/tool:v2
    name: LocalName,
    /// The archive; - is standard input
    #[arg(default_value = "-")]
    file: String,
    /// Which image of the archive, where it has several
    #[arg(long)]
    tag: Option<String>,
    #[command(flatten)]
    shape: Shape,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let input = if args.file == "-" { Input::Stdin } else { Input::Path(args.file.clone().into()) };
    let source = Source::Local(Local { input, format: Format::Any, tag: args.tag.clone() });
    fetch("import", context, &context.store()?, source, Some(args.name.clone()), &args.shape)
}
