//! The layers of a pull: fetched side by side, converted in order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::mpsc;

use tokio::task::{JoinSet, spawn_blocking};

use super::{Origin, Pull, PullError, Resolved};
use crate::convert::{self, Layer};
use crate::image::Descriptor;
use crate::progress::Event;
use crate::reference::ImageName;
use crate::store::{Ingest, Pending, StoreError};

/// Layers that are fetched at once. Docker's number is 3, containerd's too.
const PARALLEL_LAYERS: usize = 4;

/// Layers that are opened ahead of the conversion where they are: a process may have 1024 files open.
const MAX_OPEN: usize = 128;

impl Pull {
    pub(super) async fn fetch_and_convert(
        &self,
        resolved: &Resolved,
        pending: &Pending,
        options: convert::Options,
    ) -> Result<(File, u64), PullError> {
        let output = pending.create()?;
        let (ready, layers) = mpsc::channel();
        let pull = self.clone();
        let count = resolved.manifest.layers.len();
        let mut conversion = spawn_blocking(move || {
            let summary =
                convert::convert(layers.into_iter(), count, &output, &options, &|event| pull.tell(event));
            summary.map(|summary| (output, u64::from(summary.inodes)))
        });
        // Whichever ends first: a conversion that fails stops the downloads.
        let mut running = JoinSet::new();
        let (mut fetched, converted) = {
            let fetch = self.fetch_layers(resolved, &mut running, ready);
            tokio::pin!(fetch);
            tokio::select! {
                fetched = &mut fetch => (fetched, None),
                converted = &mut conversion => match converted {
                    // Layers that are read in place may still be on their way into the store.
                    Ok(Ok(_)) => (fetch.await, Some(converted)),
                    _ => (Ok(()), Some(converted)),
                },
            }
        };
        // A copy from a local source runs on a blocking thread and cannot be stopped; if it outlived us, it would use the
        // source's scratch directory after that is gone. What it brings is kept.
        match resolved.origin {
            Origin::Registry(..) => running.shutdown().await,
            Origin::Local(_) | Origin::Stored(_) => {
                while let Some(copied) = running.join_next().await {
                    // A layer that is not what its name says explains why it could not be converted.
                    if fetched.is_ok() {
                        fetched = copied?.map(drop);
                    }
                }
            }
        }
        // A download that failed has closed the channel, so that the conversion ends.
        let converted = match converted {
            Some(converted) => converted,
            None => conversion.await,
        };
        fetched?;
        converted?.map_err(|source| PullError::Convert { manifest: resolved.manifest.digest, source })
    }

    /// Fetches the layers and hands them over in order; those of a layout at once, to be read where they are while they
    /// are copied. The image counts only when both have succeeded: the copy vouches for the digest, the conversion for the
    /// diff_id of what it has read.
    async fn fetch_layers(
        &self,
        resolved: &Resolved,
        running: &mut JoinSet<Result<(usize, File), PullError>>,
        ready: mpsc::Sender<io::Result<Layer>>,
    ) -> Result<(), PullError> {
        let layers = &resolved.manifest.layers;
        let hand_over = |index: usize, blob| {
            let layer = Layer { blob, descriptor: layers[index].clone(), diff_id: resolved.diff_ids[index] };
            // The conversion may have failed; it says why.
            ready.send(Ok(layer)).is_ok()
        };
        let mut next = 0;
        while let (Origin::Local(image), Some(layer)) = (&resolved.origin, layers.get(next))
            && next < MAX_OPEN
        {
            let stored = self.store.blob(&layer.digest, layer.size)?;
            let Some(blob) = stored.map_or_else(|| image.open_in_place(layer), |blob| Ok(Some(blob)))? else {
                break;
            };
            hand_over(next, blob);
            next += 1;
        }
        let mut waiting = layers.iter().cloned().enumerate();
        let mut out_of_order: BTreeMap<usize, File> = BTreeMap::new();
        loop {
            while running.len() < PARALLEL_LAYERS
                && let Some((index, layer)) = waiting.next()
            {
                let (pull, origin) = (self.clone(), resolved.origin.clone());
                running.spawn(async move { pull.fetch(origin, &layer).await.map(|blob| (index, blob)) });
            }
            let Some(fetched) = running.join_next().await else { return Ok(()) };
            let (index, blob) = fetched??;
            if index >= next {
                out_of_order.insert(index, blob);
            }
            while let Some(blob) = out_of_order.remove(&next) {
                if !hand_over(next, blob) {
                    return Ok(());
                }
                next += 1;
            }
        }
    }

    /// One layer: a blob of the store, open.
    async fn fetch(&self, origin: Origin, layer: &Descriptor) -> Result<File, PullError> {
        if let Some(blob) = self.store.blob(&layer.digest, layer.size)? {
            self.tell(Event::Present { blob: layer.digest, size: layer.size });
            return Ok(blob);
        }
        let blob = match origin {
            Origin::Stored(name @ ImageName::Local { .. }) => return Err(PullError::LayersGone(name)),
            Origin::Stored(name) => return Err(StoreError::Incomplete { name: name.to_string() }.into()),
            Origin::Local(image) => {
                let (pull, layer) = (self.clone(), layer.clone());
                spawn_blocking(move || image.layer(&pull.store, &layer, &|event| pull.tell(event))).await??
            }
            Origin::Registry(registry, reference) => {
                let (pull, wanted) = (self.clone(), layer.clone());
                let waiting = Event::Waiting { what: format!("layer {}", layer.digest) };
                let ingest =
                    spawn_blocking(move || pull.store.ingest(&wanted, || pull.tell(waiting))).await??;
                match ingest {
                    Ingest::Present(blob) => blob,
                    Ingest::Missing(part) => {
                        let progress = |event| self.tell(event);
                        registry.blob(&reference, layer, part.file(), &progress).await?;
                        spawn_blocking(move || part.commit()).await??
                    }
                }
            }
        };
        self.tell(Event::Downloaded { blob: layer.digest });
        Ok(blob)
    }
}
