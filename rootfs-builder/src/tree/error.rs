//! What a layer may ask of a tree that cannot be.

/// An entry that has no place in the tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// A name that starts at the host's root.
    #[error("{0:?} is an absolute path; a layer's names are relative to the image's root")]
    Absolute(String),
    /// A name that leads out of its directory.
    #[error("{0:?} has a .. in it; a layer's names stay below the image's root")]
    Parent(String),
    /// A component that no file system can hold.
    #[error("{0:?} has a component of more than 255 bytes")]
    NameTooLong(String),
    /// An object below something that is no directory.
    #[error("{0:?} is below something that is not a directory")]
    NotADirectory(String),
    /// A path that never ends.
    #[error("{0:?} passes through more than 40 symbolic links")]
    SymlinkLoop(String),
    /// Symbolic links that lead through more names than any image needs.
    #[error("{0:?} is one path through symbolic links too many: together they take too many steps")]
    TooManyDetours(String),
    /// `lost+found` as something else than a directory.
    #[error("lost+found has to be a directory: the file system's checker needs it")]
    LostAndFound,
    /// A name below `.wh.NAME`.
    #[error("{0:?} is below a whiteout")]
    BelowWhiteout(String),
    /// A hard link to nothing.
    #[error("{path:?} is a hard link to {target:?}, which is not there")]
    NoTarget {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// A hard link to a directory.
    #[error("{path:?} is a hard link to the directory {target:?}")]
    LinkToDirectory {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// The root as something else than a directory.
    #[error("the root is not a directory")]
    RootNotDirectory,
    /// `.wh.` without a name behind it.
    #[error("{0:?} is a whiteout of nothing")]
    EmptyWhiteout(String),
    /// Over the limit.
    #[error("{path:?} is beyond the limit of {limit} entries")]
    TooManyEntries {
        /// The first too many.
        path: String,
        /// The limit.
        limit: u32,
    },
    /// Over the limit.
    #[error("{path:?} is beyond the limit of {limit} bytes of names and link targets")]
    TooManyNames {
        /// The first too many.
        path: String,
        /// The limit in bytes.
        limit: u32,
    },
}
