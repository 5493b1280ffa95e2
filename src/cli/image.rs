//! The image that a sandbox is to be made of.

use clap::ValueEnum;
use rootfs_builder::source::Source;
use rootfs_builder::store::{Image, Store, StoreError};

use super::Context;
use super::error::CliError;
use super::images::pull::{Shape, obtain};
use crate::size::Size;

/// Whether to get an image before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum PullPolicy {
    /// If it is not here
    #[default]
    Missing,
    /// Never
    Never,
    /// Even if it is here
    Always,
}

/// The image, pulled before if need be.
pub(super) fn get(
    context: &Context,
    store: &Store,
    text: &str,
    disk: Option<Size>,
    policy: PullPolicy,
) -> Result<Image, CliError> {
    let name = context.name(store, Some(text))?;
    let here = match store.image(&name) {
        Err(StoreError::NotFound(_)) => None,
        found => Some(found?),
    };
    let fits = |image: &Image| {
        disk.is_none_or(|Size(size)| {
            image.record.size_bytes == size || image.record.recipe.size == Some(size)
        })
    };
    match (policy, here) {
        (PullPolicy::Missing | PullPolicy::Never, Some(image)) if fits(&image) => Ok(image),
        (PullPolicy::Never, None) => {
            let missing = StoreError::NotFound(name.to_string());
            Err(crate::images::as_typed(missing, Some(text)).into())
        }
        (PullPolicy::Never, Some(image)) => Err(CliError::Usage(format!(
            "the file system of {name} has {}: another size needs the image to be made anew, which --pull never forbids",
            Size(image.record.size_bytes)
        ))),
        (PullPolicy::Missing | PullPolicy::Always, _) => {
            let shape = Shape { platform: None, size: disk };
            obtain("pull", context, store, Source::Name(name.clone()), None, &shape)?;
            Ok(store.image(&name)?)
        }
    }
}
