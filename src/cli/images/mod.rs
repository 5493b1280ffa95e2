//! `voidrun images ...`

mod gc;
mod import;
mod inspect;
mod ls;
pub(super) mod pull;
mod rm;

use clap::Subcommand;

use super::{Context, error::CliError};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Pull(pull::Args),
    Import(import::Args),
    Ls(ls::Args),
    Inspect(inspect::Args),
    Rm(rm::Args),
    Gc(gc::Args),
}

pub(super) fn run(verb: Verb, context: &Context) -> Result<(), CliError> {
    match verb {
        Verb::Pull(args) => pull::run(&args, context),
        Verb::Import(args) => import::run(&args, context),
        Verb::Ls(args) => ls::run(&args, context),
        Verb::Inspect(args) => inspect::run(&args, context),
        Verb::Rm(args) => rm::run(&args, context),
        Verb::Gc(args) => gc::run(&args, context),
    }
}
