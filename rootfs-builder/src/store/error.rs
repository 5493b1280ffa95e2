//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::{Digest, Human};

/// A failure of the store. Each names its file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// "open", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store's file system is full, or will be.
    #[error(
        "not enough space for {what} in {}: at least about {} are needed, {} are free; `voidrun images gc --grace 0s` frees what is not in use",
        path.display(), Human(*needed), Human(*available)
    )]
    NoSpace {
        /// What was to be stored.
        what: String,
        /// The store.
        path: PathBuf,
        /// Bytes needed, as far as that is known: an estimate where layers are compressed. More than `available`.
        needed: u64,
        /// Bytes free for this user once what was written in vain is gone.
        available: u64,
    },
    /// The store has a format that this program does not know.
    #[error(
        "the store {} has format {found}, this voidrun knows {supported}: use the voidrun that wrote it, or another VOIDRUN_HOME",
        path.display()
    )]
    Format {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The file that says which format the store has is torn.
    #[error(
        "{} is damaged: it says which format the store has, {{\"format\":{supported}}} for this voidrun; restore it, or use \
         another VOIDRUN_HOME", path.display()
    )]
    DamagedFormat {
        /// The file.
        path: PathBuf,
        /// What it would have to say.
        supported: u32,
        /// Why it cannot be read.
        source: serde_json::Error,
    },
    /// A record is torn or does not say what its place asks for.
    #[error("{} is damaged ({reason}): pull or import the image again", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No such reference.
    #[error(
        "no image {0} in the store: `voidrun images ls` lists what there is, `voidrun images pull` gets more"
    )]
    NotFound(String),
    /// The image is in use, and has no other name.
    #[error("the image {name} is what others are made of: remove {} first", users.join(", "))]
    InUse {
        /// The reference.
        name: String,
        /// What they are, and their names, or ids where they have none.
        users: Vec<String>,
    },
    /// The reference exists and its image does not.
    #[error("the root file system of {name} is missing or incomplete: pull or import it again")]
    Incomplete {
        /// The reference.
        name: String,
    },
    /// A blob or image was removed while it was being used.
    #[error("{0} was removed from the store in the meantime: pull again")]
    Gone(Digest),
    /// A blob has not the size its descriptor states.
    #[error("blob {digest} has {found} bytes where its descriptor states {expected}")]
    Size {
        /// Of the blob.
        digest: Digest,
        /// In the descriptor.
        expected: u64,
        /// What came.
        found: u64,
    },
}

impl StoreError {
    /// For `map_err`: an I/O error with its subject.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Does the chain of errors end in a full disk?
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        })
    })
}
