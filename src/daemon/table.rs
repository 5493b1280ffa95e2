//! The sandboxes by id and by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::DaemonError;
use super::sandbox::Sandbox;

/// The sandboxes by id.
#[derive(Debug, Default)]
pub(super) struct Table {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
}

/// A part of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// From 1 on.
    pub(crate) number: usize,
    /// Sandboxes a page, at least one.
    pub(crate) limit: usize,
}

impl Page {
    pub(super) fn start(self) -> usize {
        self.number.saturating_sub(1).saturating_mul(self.limit)
    }
}

impl Table {
    pub(super) fn insert(&mut self, sandbox: Arc<Sandbox>) {
        self.sandboxes.insert(sandbox.id().to_owned(), sandbox);
    }

    /// False if it was not there any more.
    pub(super) fn remove(&mut self, sandbox: &Sandbox) -> bool {
        self.sandboxes.remove(sandbox.id()).is_some()
    }

    pub(super) fn all(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.sandboxes.len()
    }

    pub(super) fn named(&self, name: &str) -> Option<&Arc<Sandbox>> {
        self.sandboxes.values().find(|sandbox| sandbox.record().name == name)
    }

    pub(super) fn find(&self, key: &str) -> Result<Arc<Sandbox>, DaemonError> {
        if let Some(found) = self.sandboxes.get(key).or_else(|| self.named(key)) {
            return Ok(Arc::clone(found));
        }
        let from = self.sandboxes.range(key.to_owned()..);
        let mut found: Vec<_> = from.take_while(|(id, _)| !key.is_empty() && id.starts_with(key)).collect();
        match found.pop() {
            None => Err(DaemonError::NotFound(key.chars().take(100).collect())),
            Some((_, sandbox)) if found.is_empty() => Ok(Arc::clone(sandbox)),
            Some((last, _)) => {
                let ids = found.into_iter().map(|(id, _)| id.clone()).chain([last.clone()]).take(5);
                Err(DaemonError::Ambiguous { prefix: key.to_owned(), ids: ids.collect() })
            }
        }
    }

    /// MiB of memory of the machines there are.
    pub(super) fn memory_mib(&self) -> u64 {
        let up = self.sandboxes.values().filter(|sandbox| sandbox.status().is_up());
        up.map(|sandbox| u64::from(u32::from(sandbox.record().memory_mib))).sum()
    }
}
