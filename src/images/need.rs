//! Whether an image has to be got before a sandbox is made of it.

use clap::ValueEnum;
use rootfs_builder::reference::ImageName;
use rootfs_builder::store::{Image, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::size::Size;

/// Whether to get an image before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PullPolicy {
    /// If it is not here
    #[default]
    Missing,
    /// Never
    Never,
    /// Even if it is here
    Always,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Need {
    /// It is here.
    Nothing(Box<Image>),
    /// It has to be got.
    Pull {
        /// It is here, and only to be converted to another size.
        again: bool,
    },
}

/// An image that may not be got.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NeedError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the file system of {name} has {has}: another size needs the image to be made anew, which the pull policy `never` \
         forbids"
    )]
    Size { name: ImageName, has: Size },
}

/// `size`: of the file system, in bytes; whatever it has where none is given.
pub(crate) fn need(
    store: &Store,
    name: &ImageName,
    size: Option<u64>,
    policy: PullPolicy,
) -> Result<Need, NeedError> {
    let here = match store.image(name) {
        Err(StoreError::NotFound(_)) if policy != PullPolicy::Never => None,
        found => Some(found?),
    };
    let Some(image) = here else { return Ok(Need::Pull { again: false }) };
    let record = &image.record;
    let fits = size.is_none_or(|size| record.size_bytes == size || record.recipe.size == Some(size));
    match policy {
        PullPolicy::Always => Ok(Need::Pull { again: false }),
        _ if fits => Ok(Need::Nothing(Box::new(image))),
        PullPolicy::Missing => Ok(Need::Pull { again: true }),
        PullPolicy::Never => Err(NeedError::Size { name: name.clone(), has: Size(record.size_bytes) }),
    }
}
