//! One file or directory at a time. Paths are absolute, without NUL bytes, and lead wherever the guest's symlinks lead: all that they
//! reach is the guest's own. A name that is not UTF-8 is shown with replacement characters.
//!
//! What fails is an [`crate::Error`] with [`crate::ErrorCode::File`], whose message names the path and whose `errno` is the kind.

use serde::{Deserialize, Serialize};

/// What is asked for, see [`crate::Request::File`]. All of it is done as root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FileRequest {
    /// What stands at a path; a symlink is followed. Answer: [`FileInfo`].
    Stat {
        /// Which.
        path: String,
    },
    /// What is in a directory, symlinks as themselves. Answer: one [`FileInfo`] each in no order, then Done.
    List {
        /// The directory.
        path: String,
    },
    /// What is below a directory, and on its file system, whose name matches a pattern; symlinks are not followed. Answer: as
    /// for [`FileRequest::List`].
    Search {
        /// The directory.
        path: String,
        /// As `find -name` takes it: `*`, `?`, `[...]` and `\`.
        pattern: String,
    },
    /// Makes a directory, and those above it. One that is there already stays as it is. Answer: Done.
    Mkdir {
        /// Which.
        path: String,
        /// Who owns what is made, as [`crate::Exec::user`]. Root without one.
        #[serde(default)]
        owner: Option<String>,
    },
    /// Gives a file or directory another path; a file that is there is replaced. Answer: Done.
    Move {
        /// The old path. A symlink is moved itself.
        from: String,
        /// The new one.
        to: String,
    },
    /// Copies a file, or a directory with what is in it, with its modes, times and owners; a file that is there is replaced.
    /// The copy appears when it is whole. Answer: Done.
    Copy {
        /// What is copied. A symlink is copied as itself.
        from: String,
        /// The path of the copy.
        to: String,
    },
    /// Sets permissions; a symlink is followed. Answer: Done.
    Chmod {
        /// Of what.
        path: String,
        /// Up to 0o7777.
        mode: u32,
    },
    /// Removes a file, or a directory with what is in it; of a symlink itself. Answer: Done.
    Delete {
        /// What.
        path: String,
    },
    /// The content of a file. Answer: [`FileInfo`], Data frames, then DataEnd, or [`crate::Error`] at any time.
    Read {
        /// The file.
        path: String,
    },
    /// Writes a file: Data frames follow, then DataEnd. Answer: Done, or [`crate::Error`] at any time.
    ///
    /// It appears when it is whole. One that is replaced gives it its owner and mode; directories that are missing are made.
    Write {
        /// The file.
        path: String,
        /// Its permissions, up to 0o7777; else those of the file that was there, else 0o644.
        #[serde(default)]
        mode: Option<u32>,
        /// To refuse to replace one.
        #[serde(default)]
        exclusive: bool,
        /// Who owns what is made, as [`crate::Exec::user`]. Root without one.
        #[serde(default)]
        owner: Option<String>,
    },
    /// Tells of what happens to a file, or in a directory, until the host ends the stream. Answer: Done when it begins, then
    /// [`FileEvent`] frames, and DataEnd when what is watched has gone; or [`crate::Error`].
    Watch {
        /// The file or directory.
        path: String,
        /// What is below its subdirectories too, on its file system.
        #[serde(default)]
        recursive: bool,
        /// To leave out subdirectories whose name begins with a dot.
        #[serde(default)]
        ignore_hidden: bool,
    },
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileInfo {
    /// Where it is.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Whether it is a directory, or a symlink that leads to one.
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
    /// Permission bits, up to 0o7777.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// When its content changed: milliseconds since 1970, UTC.
    pub modified_ms: u64,
    /// What a symlink points to.
    #[serde(default)]
    pub target: Option<String>,
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink.
    Symlink,
    /// A socket, a pipe, a device.
    #[serde(other)]
    Other,
}

/// What has happened to a file that is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEvent {
    /// What.
    pub kind: FileEventKind,
    /// To which; of an overflow the path that is watched.
    pub path: String,
    /// Where a renamed one was.
    #[serde(default)]
    pub old_path: Option<String>,
    /// Bytes of a file that was created or modified, where it is still there.
    #[serde(default)]
    pub size: Option<u64>,
    /// When the agent was told: milliseconds since 1970, UTC.
    #[serde(default)]
    pub time_ms: u64,
}

/// The kinds of [`FileEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum FileEventKind {
    /// It is new here.
    Created,
    /// Its content has changed.
    Modified,
    /// It is no longer here.
    Deleted,
    /// It has another path.
    Renamed,
    /// Its permissions, owner or times have changed.
    Chmod,
    /// More has happened, or is there, than can be told: the reader has to look for itself.
    #[serde(other)]
    Overflow,
}
