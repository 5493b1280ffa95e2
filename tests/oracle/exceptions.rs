//! Where `umoci unpack` (0.4.7) departs from the OCI image specification, and the specification decides.
//!
//! Besides these, umoci refuses what it does not know: layers in zstd, sparse files of old GNU tar (type `S`), global
//! extended headers (type `g`). The first are compared with the same layers in gzip, the others umoci gets in another
//! form (`archive::Reader`).

use crate::compare::{Exception, Field};

/// Of the torture image.
pub const TORTURE: &[Exception] = &[
    Exception {
        paths: &["implied", "implied/a", "implied/a/b", "implied/a/e", "implied/c", "implied/f", "implied/g"],
        fields: &[Field::Mtime],
        section: "layer.md, Applying Changesets",
        why: "a directory that no entry names has no time; umoci leaves that of the unpacking",
    },
    Exception {
        paths: &["implied/g/h", "through/nowhere"],
        fields: &[Field::Mtime],
        section: "layer.md, Applying Changesets",
        why: "the same, for the parents of a hard link and behind a dangling symlink",
    },
    Exception {
        paths: &["", "through"],
        fields: &[Field::Mtime],
        section: "layer.md, File Attributes",
        why: "mtime is the entry's; umoci does not restore it after it has made a directory that no entry names in it",
    },
    Exception {
        paths: &["opaque/last/sub"],
        fields: &[Field::Mtime],
        section: "layer.md, Opaque Whiteout, and File Attributes",
        why: "mtime is the entry's; umoci does not restore it after it has applied an opaque whiteout that comes later",
    },
    Exception {
        paths: &["times/last", "times/last-symlink", "times/last-dir"],
        fields: &[Field::Mtime],
        section: "layer.md, File Attributes: mtime",
        why: "umoci counts nanoseconds in 64 bits, which end in 2262, and puts 1901 there",
    },
    Exception {
        paths: &["old/dir"],
        fields: &[Field::Type],
        section: "layer.md refers to POSIX ustar, which reads type NUL as before ustar: a name that ends in / is a directory",
        why: "umoci makes an empty file",
    },
];
