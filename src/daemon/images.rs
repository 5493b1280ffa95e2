//! The images of the store, and pulls into it, for clients of the API.

use std::sync::Arc;

use rootfs_builder::convert::Limits;
use rootfs_builder::image::{Digest, Platform};
use rootfs_builder::progress::Progress;
use rootfs_builder::pull::{PullError, PullOptions, Pulled, pull};
use rootfs_builder::reference::{ImageName, LocalName, NameError};
use rootfs_builder::source::Source;
use rootfs_builder::store::{Image, Removal};
use serde::Serialize;

use super::Daemon;
use super::create::blocking;
use super::error::DaemonError;
use crate::images::{self, Need, NeedError, PullPolicy, View};

/// So many at once: each has a conversion that takes a processor and memory.
pub(super) const MAX_PULLS: usize = 4;

/// What is to come into the store.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) source: Source,
    /// What it is to be called, where the source does not say.
    pub(crate) name: Option<LocalName>,
    /// Which of a multi-platform image; otherwise this machine's.
    pub(crate) platform: Option<Platform>,
}

/// The image of a new sandbox. What is not given is the configuration's.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageWanted {
    pub(crate) name: Option<String>,
    /// Of its file system, in bytes; otherwise whatever it has.
    pub(crate) size: Option<u64>,
    pub(crate) pull: PullPolicy,
}

/// What a pull has led to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Got {
    pub(crate) image: View,
    /// Whether it was not there before.
    pub(crate) converted: bool,
    /// The manifest that its name meant until now, if it was another one.
    pub(crate) replaced: Option<Digest>,
}

impl Daemon {
    /// All images, and what is wrong with those that cannot be shown.
    pub(crate) async fn images(self: &Arc<Self>) -> Result<(Vec<View>, Vec<String>), DaemonError> {
        let daemon = Arc::clone(self);
        blocking(move || {
            let found = daemon.store.list()?;
            let damaged = found.damaged.iter().map(ToString::to_string).collect();
            Ok((found.images.iter().map(View::of).collect(), damaged))
        })
        .await
    }

    /// The image that is called `text`.
    pub(crate) async fn show_image(self: &Arc<Self>, text: String) -> Result<View, DaemonError> {
        let daemon = Arc::clone(self);
        blocking(move || {
            let found = daemon.store.find(&daemon.name_of_image(Some(&text))?);
            Ok(View::of(&found.map_err(|error| images::as_typed(error, Some(&text)))?))
        })
        .await
    }

    /// Removes the image that is called `text`, and what only it needed; returns all that has gone.
    pub(crate) async fn remove_image(self: &Arc<Self>, text: String) -> Result<Vec<Removal>, DaemonError> {
        let daemon = Arc::clone(self);
        blocking(move || {
            let mut removed = Vec::new();
            let done = daemon
                .store
                .remove(&[daemon.name_of_image(Some(&text))?], &mut |removal| removed.push(removal));
            done.map_err(|error| images::as_typed(error, Some(&text)))?;
            Ok(removed)
        })
        .await
    }

    /// Gets an image, as `voidrun images pull` does. Dropped, it ends, and what has come of a registry's image is kept.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        wanted: Wanted,
        progress: Progress<'_>,
    ) -> Result<Got, DaemonError> {
        let Wanted { source, name, platform } = wanted;
        let (name, limits) = (name.map(ImageName::from), Limits::default());
        let options = PullOptions { name, platform, size: None, again: false, limits };
        let Pulled { reference, converted, replaced } = self.get(source, options, progress).await?;
        let (store, name) = (self.store.clone(), reference.name);
        let image = blocking(move || Ok(View::of(&store.image(&name)?))).await?;
        Ok(Got { image, converted, replaced })
    }

    /// The image of a new sandbox, pulled or made again before where that is needed. Dropped, it ends.
    pub(super) async fn obtain(self: &Arc<Self>, wanted: ImageWanted) -> Result<Image, DaemonError> {
        let ImageWanted { name: text, size, pull } = wanted;
        let daemon = Arc::clone(self);
        let (name, needed) = blocking(move || {
            let name = daemon.name_of_image(text.as_deref())?;
            match images::need(&daemon.store, &name, size, pull) {
                Ok(needed) => Ok((name, needed)),
                Err(NeedError::Store(error)) => Err(images::as_typed(error, text.as_deref()).into()),
                Err(error @ NeedError::Size { .. }) => Err(DaemonError::ImageSize(error.to_string())),
            }
        })
        .await?;
        let again = match needed {
            Need::Nothing(image) => return Ok(*image),
            Need::Pull { again } => again,
        };
        let options = PullOptions { name: None, platform: None, size, again, limits: Limits::default() };
        let pulled = self.get(Source::Name(name), options, &|_| {}).await?;
        let store = self.store.clone();
        blocking(move || Ok(store.image_of(pulled.reference)?)).await
    }

    async fn get(
        self: &Arc<Self>,
        source: Source,
        options: PullOptions,
        progress: Progress<'_>,
    ) -> Result<Pulled, DaemonError> {
        let _place = self.pulls.try_acquire().map_err(|_| DaemonError::TooManyPulls(MAX_PULLS))?;
        let what = options.name.as_ref().map_or_else(|| source.to_string(), ToString::to_string);
        let pulled = async {
            let daemon = Arc::clone(self);
            // It reads the certificates of the system.
            let registry = tokio::task::spawn_blocking(move || images::registry(&daemon.config)).await??;
            pull(&self.store, &registry, source, options, progress).await
        };
        let pulled = pulled.await;
        let pulled =
            pulled.map_err(|source: PullError| DaemonError::Pull { what, source: Box::new(source) })?;
        self.metrics.image();
        Ok(pulled)
    }

    /// What `text` means; the default image when there is none.
    pub(crate) fn name_of_image(&self, text: Option<&str>) -> Result<ImageName, NameError> {
        images::name(&self.config, &self.store, text)
    }
}
