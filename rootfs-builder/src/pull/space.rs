//! Room on the disk: asked for before a pull, explained when there was too little.

use std::collections::BTreeMap;

use super::{Origin, Pull, PullError, Resolved, total};
use crate::convert::ConvertError;
use crate::ext4::Ext4Error;
use crate::source::{Input, Local, SourceError};
use crate::store::{Pending, StoreError, is_full};

impl Pull {
    /// Fails early when not even the layers fit.
    pub(super) fn check_space(&self, resolved: &Resolved) -> Result<(), StoreError> {
        let needed = self.to_fetch(resolved)?;
        if needed > self.store.available()? {
            return Err(self.store.no_space(format!("image {}", resolved.manifest.digest), needed, 0));
        }
        Ok(())
    }

    /// Bytes of layers that are still to be written. Those of an archive are on the disk already.
    fn to_fetch(&self, resolved: &Resolved) -> Result<u64, StoreError> {
        if let Origin::Local(image) = &resolved.origin
            && image.copied_bytes().is_some()
        {
            return Ok(0);
        }
        let layers: BTreeMap<_, _> = resolved.manifest.layers.iter().map(|l| (l.digest, l)).collect();
        layers.values().try_fold(0u64, |sum, layer| Ok(sum.saturating_add(self.store.missing_bytes(layer)?)))
    }

    /// A full disk is told with how much is needed, while what was written in vain is still there to be counted.
    pub(super) fn explain(&self, error: PullError, resolved: &Resolved, pending: &Pending) -> PullError {
        if let PullError::Convert {
            source: ConvertError::Ext4(Ext4Error::SizeTooSmall { asked, needed }),
            ..
        } = error
        {
            return PullError::SizeTooSmall { asked, needed };
        }
        if !is_full(&error) {
            return error;
        }
        let layers = total(&resolved.manifest.layers);
        let copied = match &resolved.origin {
            Origin::Local(image) => image.copied_bytes(),
            _ => None,
        };
        // An archive is copied anew by the next try, everything else continues.
        let fetch = copied.map_or_else(|| self.to_fetch(resolved).unwrap_or(layers), |_| layers);
        // What layers decompress to is not known beforehand; three times is usual.
        let file_system = pending.written().max(layers.saturating_mul(3));
        let written = pending.written().saturating_add(copied.unwrap_or(0));
        let what = format!("image {}", resolved.manifest.digest);
        self.store.no_space(what, fetch.saturating_add(file_system), written).into()
    }
}

/// An archive did not fit: as a file it has a length, from which to guess what else it needs.
pub(super) fn explain_copy(mut error: SourceError, local: &Local) -> SourceError {
    if let (SourceError::Store(StoreError::NoSpace { needed, .. }), Input::Path(path)) =
        (&mut error, &local.input)
        && let Ok(archive) = std::fs::metadata(path)
    {
        // The copy, and the file system made of it; more if the archive is compressed.
        *needed = archive.len().saturating_mul(4).max(*needed);
    }
    error
}
