//! From a source to a named image in the store.
//!
//! ```text
//! resolve -> configuration -> [image lock] -> layers, 4 at a time -> convert -> image, record -> reference
//!                                               \_ each is handed over, lowest first, as soon as it is verified
//! ```
//!
//! The layers are tasks of the async runtime, or of its blocking threads; the conversion has a blocking thread of its own
//! and ends by itself when the channel of layers closes, so dropping the future of [`pull`] stops everything. Events of
//! all of them come by one channel to the caller's task, which alone calls `progress`.

mod layers;
mod space;

use std::sync::Arc;

use oci_spec::distribution::Reference;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{JoinError, spawn_blocking};

use crate::convert::{self, ConvertError, Limits};
use crate::ext4::WRITER_VERSION;
use crate::image::{Descriptor, Digest, Human, ImageConfig, Manifest, ManifestError, Platform, parse_config};
use crate::progress::{Event, Progress};
use crate::reference::ImageName;
use crate::registry::{Registry, RegistryError};
use crate::source::{LocalImage, Source, SourceError};
use crate::store::{ImageRecord, ImageRecordParts, Pending, Recipe, RefRecord, Store, StoreError};

use space::explain_copy;

/// How a pull is done.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The name in the store; without it [`Source::default_name`].
    pub name: Option<ImageName>,
    /// Which of a multi-platform image; without it this machine's, or that of the image that is here already.
    pub platform: Option<Platform>,
    /// The file system's size in bytes; without it the larger of 10 GiB and twice the content, or that of the image that is
    /// here already.
    pub size: Option<u64>,
    /// Whether the image that is here already is only to be converted again, for another size: a registry is asked at most for
    /// layers that are not kept.
    pub again: bool,
    /// What a conversion may cost.
    pub limits: Limits,
}

/// What a pull has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The reference that was written.
    pub reference: RefRecord,
    /// Was the image made by this pull? Otherwise it was there.
    pub converted: bool,
    /// The manifest that the name meant until now, if it was another one.
    pub replaced: Option<Digest>,
}

/// A pull that failed. What was verified until then is kept for the next one.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry, or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The local source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image's documents.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The layers cannot become a file system.
    #[error("cannot convert image {manifest} to a file system")]
    Convert {
        /// The image.
        manifest: Digest,
        /// Why.
        source: ConvertError,
    },
    /// The size asked for is less than the content needs.
    #[error("a file system of {} is too small for the image, it needs {}", Human(*asked), Human(*needed))]
    SizeTooSmall {
        /// In bytes.
        asked: u64,
        /// In bytes, at least.
        needed: u64,
    },
    /// The source has one image only, and that is for another machine.
    #[error("the image is for {found}, not for {wanted}; `--platform {found}` takes it all the same")]
    Platform {
        /// In the image's configuration.
        found: String,
        /// What was asked for.
        wanted: Platform,
    },
    /// The source suggests no name.
    #[error("an image from {0} needs a name: add --name NAME")]
    NameNeeded(String),
    /// An imported image is to be converted again, and its layers were collected.
    #[error("the layers of {0} are no longer kept: import it again")]
    LayersGone(ImageName),
    /// A task panicked: a bug.
    #[error("a part of the pull failed unexpectedly")]
    Task(#[from] JoinError),
}

/// Pulls `source` into `store`. Dropped or killed at any moment, the next pull continues.
pub async fn pull(
    store: &Store,
    registry: &Registry,
    source: Source,
    options: PullOptions,
    progress: Progress<'_>,
) -> Result<Pulled, PullError> {
    let (events, mut received) = unbounded_channel();
    let work = Pull { store: store.clone(), events }.run(registry.clone(), source, options);
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(event) = received.recv() => progress(event),
            result = &mut work => {
                while let Ok(event) = received.try_recv() {
                    progress(event);
                }
                return result;
            }
        }
    }
}

/// Where the layers come from.
#[derive(Clone)]
enum Origin {
    Registry(Registry, Reference),
    Local(Arc<LocalImage>),
    /// From an earlier pull, for another conversion.
    Stored(ImageName),
}

/// An image whose layers are not here yet.
struct Resolved {
    origin: Origin,
    manifest: Manifest,
    config: ImageConfig,
    diff_ids: Vec<Digest>,
    size: Option<u64>,
}

impl Resolved {
    fn stored(name: ImageName, record: ImageRecord, options: &PullOptions) -> Self {
        Self {
            origin: Origin::Stored(name),
            manifest: record.manifest,
            config: record.config,
            diff_ids: record.recipe.diff_ids,
            size: options.size.or(record.recipe.size),
        }
    }
}

impl PullOptions {
    fn wanted_platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::host)
    }
}

#[derive(Clone)]
struct Pull {
    store: Store,
    events: UnboundedSender<Event>,
}

impl Pull {
    async fn run(
        self,
        registry: Registry,
        source: Source,
        options: PullOptions,
    ) -> Result<Pulled, PullError> {
        let name = options.name.clone().or_else(|| source.default_name());
        let name = name.ok_or_else(|| PullError::NameNeeded(source.to_string()))?;
        let resolved = match (source, options.again) {
            (Source::Name(name), true) => self.stored(name, &options)?,
            (source, _) => match self.pinned(&source, &options)? {
                Some(resolved) => resolved,
                None => self.resolve(registry, source, &options).await?,
            },
        };
        let recipe = Recipe {
            manifest: resolved.manifest.digest,
            diff_ids: resolved.diff_ids.clone(),
            platform: resolved.config.platform.clone(),
            size: resolved.size,
            journal: true,
            writer: WRITER_VERSION,
        };
        self.tell(Event::Resolved {
            manifest: resolved.manifest.digest,
            layers: resolved.manifest.layers.len(),
            bytes: total(&resolved.manifest.layers),
        });
        let pending = {
            let (pull, derivation) = (self.clone(), recipe.derivation());
            let waiting = Event::Waiting { what: format!("image {}", resolved.manifest.digest) };
            Arc::new(spawn_blocking(move || pull.store.begin(derivation, || pull.tell(waiting))).await??)
        };
        let converted = pending.present()?.is_none();
        if converted {
            self.make(&resolved, recipe, &pending, options.limits).await?;
        }
        let replaced = self.meaning(&name).filter(|before| *before != resolved.manifest.digest);
        Ok(Pulled { reference: pending.name(&name)?, converted, replaced })
    }

    /// The manifest that a name stands for, as far as that can be told.
    fn meaning(&self, name: &ImageName) -> Option<Digest> {
        let reference = self.store.reference(name).ok().flatten()?;
        Some(self.store.image_record(&reference.image).ok().flatten()?.manifest.digest)
    }

    /// An image named by its digest does not change: if it is here for this platform, the registry need not be asked.
    fn pinned(&self, source: &Source, options: &PullOptions) -> Result<Option<Resolved>, PullError> {
        let Source::Name(name @ ImageName::Registry { reference }) = source else { return Ok(None) };
        if reference.digest().is_none() {
            return Ok(None);
        }
        let record = match self.store.find(name) {
            Ok(image) => image.record,
            Err(StoreError::Io { action, path, source }) => {
                return Err(StoreError::Io { action, path, source }.into());
            }
            Err(_) => return Ok(None),
        };
        let recipe = &record.recipe;
        let fits = (options.size.is_none() || recipe.size == options.size) && recipe.writer == WRITER_VERSION;
        if !fits || check_platform(&record.config, &options.wanted_platform()).is_err() {
            return Ok(None);
        }
        Ok(Some(Resolved::stored(name.clone(), record, options)))
    }

    async fn resolve(
        &self,
        registry: Registry,
        source: Source,
        options: &PullOptions,
    ) -> Result<Resolved, PullError> {
        let (platform, limits) = (&options.wanted_platform(), options.limits);
        let (origin, manifest, config) = match source {
            Source::Name(name @ ImageName::Local { .. }) => return self.stored(name, options),
            Source::Name(ImageName::Registry { reference }) => {
                let progress = |event| self.tell(event);
                let (manifest, _) = registry.resolve(&reference, platform, &progress).await?;
                let config = registry.document(&reference, &manifest.config, &progress).await?;
                (Origin::Registry(registry, reference), manifest, config)
            }
            Source::Local(local) => {
                let (pull, platform) = (self.clone(), platform.clone());
                let mut image = spawn_blocking(move || {
                    let opened = local.open(&pull.store, &platform, limits, &|event| pull.tell(event));
                    opened.map_err(|error| explain_copy(error, &local))
                })
                .await??;
                let (manifest, config) = (image.manifest.clone(), std::mem::take(&mut image.config));
                (Origin::Local(Arc::new(image)), manifest, config)
            }
        };
        let (config, diff_ids) = parse_config(&manifest, &config)?;
        check_platform(&config, platform)?;
        Ok(Resolved { origin, manifest, config, diff_ids, size: options.size })
    }

    fn stored(&self, name: ImageName, options: &PullOptions) -> Result<Resolved, PullError> {
        let reference = self.store.reference(&name)?.ok_or_else(|| StoreError::NotFound(name.to_string()))?;
        let record = self.store.image_record(&reference.image)?;
        let record = record.ok_or_else(|| StoreError::Incomplete { name: name.to_string() })?;
        if let Some(platform) = &options.platform {
            check_platform(&record.config, platform)?;
        }
        Ok(Resolved::stored(name, record, options))
    }

    /// Fetches and converts. A layer that is damaged in the store shows itself only in the conversion; it is then
    /// fetched again, once.
    async fn make(
        &self,
        resolved: &Resolved,
        recipe: Recipe,
        pending: &Arc<Pending>,
        limits: Limits,
    ) -> Result<(), PullError> {
        self.check_space(resolved)?;
        let options =
            convert::Options { size: recipe.size, journal: recipe.journal, uuid: recipe.uuid(), limits };
        let mut result = self.fetch_and_convert(resolved, pending, options).await;
        if let Err(PullError::Convert { .. }) = &result {
            let (store, layers) = (self.store.clone(), resolved.manifest.layers.clone());
            if spawn_blocking(move || store.remove_damaged(&layers)).await?? > 0 {
                result = self.fetch_and_convert(resolved, pending, options).await;
            }
        }
        let (output, inodes) = match result {
            Ok(converted) => converted,
            Err(error) => {
                return Err(self.explain(error, resolved, pending));
            }
        };
        let image =
            ImageRecordParts { manifest: resolved.manifest.clone(), config: resolved.config.clone(), inodes };
        let pending = Arc::clone(pending);
        let record = spawn_blocking(move || pending.commit(&output, recipe, image)).await??;
        self.tell(Event::Converted { size_bytes: record.size_bytes });
        Ok(())
    }

    fn tell(&self, event: Event) {
        // Nobody listens when the pull was dropped.
        let _ = self.events.send(event);
    }
}

fn total(layers: &[Descriptor]) -> u64 {
    layers.iter().fold(0, |total, layer| total.saturating_add(layer.size))
}

fn check_platform(config: &ImageConfig, wanted: &Platform) -> Result<(), PullError> {
    let found: Option<Platform> = config.platform.parse().ok();
    if found.is_some_and(|found| wanted.match_rank(&found).is_some()) {
        return Ok(());
    }
    Err(PullError::Platform { found: config.platform.clone(), wanted: wanted.clone() })
}
