//! Paths as layers write them.

use super::TreeError;

/// The longest component, in bytes: one byte holds its length on disk.
pub(super) const MAX_NAME: usize = 255;

/// The components of an entry's name; none for the root itself. `./a//b/` is `a`, `b`.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    let quoted = || quote(path);
    if path.starts_with(b"/") && path.iter().any(|&c| c != b'/') {
        return Err(TreeError::Absolute(quoted()));
    }
    split(path)
        .map(|name| match name {
            b".." => Err(TreeError::Parent(quoted())),
            name if name.len() > MAX_NAME => Err(TreeError::NameTooLong(quoted())),
            name => Ok(name),
        })
        .collect()
}

/// The components of any path, `..` among them.
pub(super) fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&c| c == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

/// For an error message.
pub(super) fn quote(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

pub(super) fn join(components: &[&[u8]]) -> String {
    quote(&components.join(&b'/'))
}
