//! The image that a sandbox is to be made of.

use rootfs_builder::source::Source;
use rootfs_builder::store::{Image, Store};

use super::Context;
use super::error::CliError;
use super::images::pull::{Shape, obtain};
use crate::images::{Need, NeedError, PullPolicy, as_typed, need};
use crate::size::Size;

/// The image, pulled before if need be.
pub(super) fn get(
    context: &Context,
    store: &Store,
    text: &str,
    disk: Option<Size>,
    policy: PullPolicy,
) -> Result<Image, CliError> {
    let name = context.name(store, Some(text))?;
    match need(store, &name, disk.map(|size| size.0), policy) {
        Ok(Need::Nothing(image)) => Ok(*image),
        Ok(Need::Pull { again }) => {
            let shape = Shape { platform: None, size: disk, again };
            let pulled = obtain("pull", context, store, Source::Name(name), None, &shape)?;
            Ok(store.image_of(pulled.reference)?)
        }
        Err(NeedError::Store(error)) => Err(as_typed(error, Some(text)).into()),
        Err(error @ NeedError::Size { .. }) => Err(CliError::Usage(error.to_string())),
    }
}
