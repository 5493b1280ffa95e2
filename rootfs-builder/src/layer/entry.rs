//! One entry of a layer, with everything its headers said, checked for range but not yet for sense.

use super::Region;

/// A point in time: seconds since 1970, which may be negative, and nanoseconds within that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of `size` bytes.
    File {
        /// Length in bytes, holes included.
        size: u64,
        /// Of a sparse file: where its data lie, ascending. `None`: everywhere.
        regions: Option<Vec<Region>>,
    },
    /// Another name for what `target` names.
    HardLink {
        /// A path from the root.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major and minor number.
        device: (u32, u32),
    },
    /// A block device.
    BlockDevice {
        /// Major and minor number.
        device: (u32, u32),
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as written, up to 4096 bytes, without NUL.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Permission, setuid, setgid and sticky bits: 0 to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes by their full names (`user.x`, `security.capability`), in the order of the header; of two
    /// with one name the later counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
