//! What two trees differ in, and which of that is as it should be.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::tree::{Node, Tree, first_difference, shown};

/// What is compared of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Presence,
    Type,
    Mode,
    Owner,
    Mtime,
    Device,
    Target,
    Xattrs,
    Size,
    Content,
    HardLinks,
}

/// One entry that is not the same.
pub struct Difference {
    path: PathBuf,
    field: Field,
    ours: String,
    theirs: String,
}

/// A place where the oracle departs from the specification, and we do not.
pub struct Exception {
    /// Where; `/` at the end stands for all that is in the directory, too.
    pub paths: &'static [&'static str],
    pub fields: &'static [Field],
    /// The section of the OCI image specification (or what it refers to) that decides.
    pub section: &'static str,
    /// What each does.
    pub why: &'static str,
}

/// Which fields can be seen at all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All; as root.
    Full,
    /// What an ordinary user's copies of the trees keep: names, types, bytes, permissions, targets.
    Unprivileged,
}

impl Exception {
    fn covers(&self, difference: &Difference) -> bool {
        self.fields.contains(&difference.field)
            && self.paths.iter().any(|path| match path.strip_suffix('/') {
                Some(directory) => difference.path.starts_with(directory),
                None => difference.path == Path::new(path),
            })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, field, ours, theirs } = self;
        write!(f, "{}: {field:?}: ours {ours}, theirs {theirs}", shown(path))
    }
}

/// Fails unless `ours` and `theirs` are the same but for the exceptions, each of which has to occur.
pub fn assert_same(what: &str, ours: &Tree, theirs: &Tree, depth: Depth, exceptions: &[Exception]) {
    let (excepted, unexpected): (Vec<_>, Vec<_>) = differences(ours, theirs, depth)
        .into_iter()
        .partition(|difference| exceptions.iter().any(|exception| exception.covers(difference)));
    let listing: Vec<String> = unexpected.iter().take(50).map(Difference::to_string).collect();
    assert!(unexpected.is_empty(), "{what}: {} differences:\n{}", unexpected.len(), listing.join("\n"));
    for exception in exceptions {
        assert!(
            depth == Depth::Unprivileged || excepted.iter().any(|difference| exception.covers(difference)),
            "{what}: the oracle no longer departs from the specification here, so the exception has to go: {:?} {} ({})",
            exception.paths,
            exception.why,
            exception.section,
        );
    }
    println!(
        "{what}: {} entries are the same, {} differences are exceptions",
        theirs.nodes.len(),
        excepted.len()
    );
}

fn differences(ours: &Tree, theirs: &Tree, depth: Depth) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differ = |path: &Path, field, ours: String, theirs: String| {
        found.push(Difference { path: path.into(), field, ours, theirs });
    };
    for (path, our) in &ours.nodes {
        match theirs.nodes.get(path) {
            // The file system's own.
            None if path == Path::new("lost+found") => {}
            None => differ(path, Field::Presence, format!("{:?}", our.kind), "absent".into()),
            Some(their) => {
                compare(path, our, their, depth, &mut differ);
                // Each file once; its other names are known to be its names.
                if our.kind == FileType::RegularFile
                    && our.size == their.size
                    && our.first_name == *path
                    && let Some(offset) = first_difference(&ours.root.join(path), &theirs.root.join(path))
                {
                    differ(path, Field::Content, format!("differ from byte {offset} on"), String::new());
                }
            }
        }
    }
    for (path, their) in &theirs.nodes {
        let invisible = depth == Depth::Unprivileged && is_special(their);
        if !invisible && !ours.nodes.contains_key(path) {
            differ(path, Field::Presence, "absent".into(), format!("{:?}", their.kind));
        }
    }
    found
}

fn is_special(node: &Node) -> bool {
    !matches!(node.kind, FileType::RegularFile | FileType::Directory | FileType::Symlink)
}

fn compare(
    path: &Path,
    our: &Node,
    their: &Node,
    depth: Depth,
    differ: &mut impl FnMut(&Path, Field, String, String),
) {
    // An ordinary user cannot make devices; umoci puts empty files in their place.
    if depth == Depth::Unprivileged && is_special(our) {
        return;
    }
    let mut check = |field, same: bool, ours: String, theirs: String| {
        if !same {
            differ(path, field, ours, theirs);
        }
    };
    macro_rules! check {
        ($kind:expr, $field:ident, $format:literal) => {
            check(
                $kind,
                our.$field == their.$field,
                format!($format, our.$field),
                format!($format, their.$field),
            )
        };
    }
    check!(Field::Type, kind, "{:?}");
    check!(Field::Size, size, "{}");
    check!(Field::Target, target, "{:?}");
    if our.kind != FileType::Symlink {
        // debugfs drops setuid, setgid and sticky.
        let seen = if depth == Depth::Full { 0o7777 } else { 0o777 };
        check(
            Field::Mode,
            our.mode & seen == their.mode & seen,
            format!("{:04o}", our.mode),
            format!("{:04o}", their.mode),
        );
    }
    if depth == Depth::Full {
        check!(Field::Owner, owner, "{:?}");
        check!(Field::Mtime, mtime, "{:?}");
        check!(Field::Device, device, "{:?}");
        check!(Field::Xattrs, xattrs, "{:?}");
        check!(Field::HardLinks, first_name, "first name {:?}");
    }
}
