//! Images as the commands and the daemon both have them: by what they are called, where they come from, and how they are shown.

pub(crate) mod failure;
mod need;
mod view;

use rootfs_builder::reference::{self, ImageName, LocalName, NameError};
use rootfs_builder::registry::{CredentialSources, Registry, RegistryConfig, RegistryError, RetryPolicy};
use rootfs_builder::store::{Store, StoreError};

pub(crate) use need::{Need, NeedError, PullPolicy, need};
pub(crate) use view::View;

use crate::config::Config;

/// The client of the registries, with the credentials that this process has.
pub(crate) fn registry(config: &Config) -> Result<Registry, RegistryError> {
    Registry::new(RegistryConfig {
        mirrors: config.mirrors.value.clone(),
        insecure: config.insecure_registries.value.clone(),
        retry: RetryPolicy::default(),
        credentials: CredentialSources::from_env(),
    })
}

/// The image that a user calls `text`; the default image when none is named.
pub(crate) fn name(config: &Config, store: &Store, text: Option<&str>) -> Result<ImageName, NameError> {
    let text = text.unwrap_or(&config.default_image.value);
    let is_local = |name: &LocalName| store.has_reference(&name.clone().into());
    reference::resolve(text, &config.aliases.value, is_local)
}

/// An error of the store about an image that the user has called `text`.
pub(crate) fn as_typed(error: StoreError, text: Option<&str>) -> StoreError {
    match (error, text) {
        (StoreError::NotFound(name), Some(text)) if name != text => {
            StoreError::NotFound(format!("{text} ({name})"))
        }
        (error, _) => error,
    }
}
