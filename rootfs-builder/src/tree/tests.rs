use proptest::prelude::*;

use super::*;

fn metadata(uid: u32) -> Metadata {
    Metadata { mode: 0o755, uid, gid: 0, mtime: Timestamp::default(), xattrs: Xattrs::None }
}

fn path(text: &str) -> Vec<&[u8]> {
    components(text.as_bytes()).unwrap()
}

impl Tree {
    fn dir(&mut self, text: &str) {
        self.add_directory(&path(text), metadata(1)).unwrap();
    }

    fn add(&mut self, text: &str, content: Content) -> Result<(), TreeError> {
        let id = self.add_inode(Inode { metadata: metadata(2), content });
        self.link(&path(text), id)
    }

    fn file(&mut self, text: &str) {
        self.add(text, Content::Fifo).unwrap();
    }

    fn symlink(&mut self, text: &str, target: &str) {
        self.add(text, Content::Symlink(target.as_bytes().into())).unwrap();
    }

    fn hide(&mut self, text: &str) {
        let path = path(text);
        let (name, parents) = path.split_last().unwrap();
        self.whiteout(parents, name).unwrap();
    }

    fn clear_all(&mut self, text: &str) {
        self.opaque(&path(text)).unwrap();
    }

    /// `path owner` of everything but lost+found, sorted; a directory's path ends in a slash.
    fn listing(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut pending = vec![(ROOT, String::new())];
        while let Some((directory, prefix)) = pending.pop() {
            for (name, id) in self.children(directory).filter(|&(_, id)| id != LOST_AND_FOUND) {
                let mut path = format!("{prefix}{}", name.escape_ascii());
                if self.directory(id).is_some() {
                    path.push('/');
                    pending.push((id, path.clone()));
                }
                all.push(format!("{path} {}", self.inode(id).metadata.uid));
            }
        }
        all.sort();
        all
    }
}

fn tree() -> Tree {
    let mut tree = Tree::new(1000, 100_000);
    tree.begin_layer();
    tree
}

#[test]
fn parents_are_made_and_replaced() {
    let mut tree = tree();
    tree.file("a/b/c");
    tree.dir("a");
    assert_eq!(tree.listing(), ["a/ 1", "a/b/ 0", "a/b/c 2"]);
    tree.file("a/b");
    assert_eq!(tree.listing(), ["a/ 1", "a/b 2"], "anything else replaces a directory");
    tree.dir("a/b");
    assert_eq!(tree.listing(), ["a/ 1", "a/b/ 1"]);
    assert_eq!(
        tree.add("a/b", Content::Fifo).and_then(|()| tree.add("a/b/c", Content::Fifo)),
        Err(TreeError::NotADirectory("a/b".into()))
    );
}

#[test]
fn symlinks_lead_nowhere_but_into_the_root() {
    let mut tree = tree();
    tree.dir("usr");
    tree.symlink("lib", "usr/lib");
    tree.symlink("usr/out", "../../../../etc");
    tree.symlink("absolute", "/usr");
    tree.file("lib/a");
    tree.file("usr/out/b");
    tree.file("absolute/lib/c");
    assert_eq!(
        tree.listing(),
        [
            "absolute 2",
            "etc/ 0",
            "etc/b 2",
            "lib 2",
            "usr/ 1",
            "usr/lib/ 0",
            "usr/lib/a 2",
            "usr/lib/c 2",
            "usr/out 2"
        ]
    );
    tree.symlink("x", "y");
    tree.symlink("y", "x");
    assert_eq!(tree.add("x/z", Content::Fifo), Err(TreeError::SymlinkLoop("x".into())));
}

#[test]
fn hard_links_are_one_object() {
    let mut tree = tree();
    tree.file("a");
    tree.begin_layer();
    tree.hard_link(&path("d/b"), b"/a").unwrap();
    tree.hide("a");
    assert_eq!(tree.listing(), ["d/ 0", "d/b 2"], "the object outlives its first name");
    let missing = TreeError::NoTarget { path: "c".into(), target: "nothing".into() };
    assert_eq!(tree.hard_link(&path("c"), b"nothing"), Err(missing));
    let directory = TreeError::LinkToDirectory { path: "c".into(), target: "d".into() };
    assert_eq!(tree.hard_link(&path("c"), b"d"), Err(directory));
    assert_eq!(tree.hard_link(&path("c"), b"../etc"), Err(TreeError::Parent("../etc".into())));
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let mut tree = tree();
    for name in ["d/a", "d/b", "e/f/g", "h"] {
        tree.file(name);
    }
    tree.begin_layer();
    tree.file("d/b");
    tree.hide("d/a");
    tree.hide("d/b");
    tree.hide("e");
    tree.hide("nothing/here");
    assert_eq!(tree.listing(), ["d/ 0", "d/b 2", "h 2"]);
    tree.begin_layer();
    tree.dir("d");
    tree.file("d/c");
    tree.hide("d");
    assert_eq!(tree.listing(), ["d/ 1", "d/c 2", "h 2"]);
    tree.begin_layer();
    tree.clear_all("");
    assert_eq!(tree.listing(), [""; 0]);
    assert_eq!(tree.children(ROOT).count(), 1, "lost+found is the file system's");
}

#[test]
fn names_that_are_refused() {
    let refused = |text: &str| components(text.as_bytes()).unwrap_err();
    assert_eq!(refused("/etc/passwd"), TreeError::Absolute("/etc/passwd".into()));
    assert_eq!(refused("a/../../b"), TreeError::Parent("a/../../b".into()));
    assert!(matches!(refused(&"x".repeat(256)), TreeError::NameTooLong(_)));
    assert_eq!(components(b"./a//b/./c/").unwrap(), [b"a", b"b", b"c"]);
    assert!(components(b"/").unwrap().is_empty());
    let mut tree = tree();
    assert_eq!(tree.add("", Content::Fifo), Err(TreeError::RootNotDirectory));
    assert!(matches!(tree.whiteout(&[], b""), Err(TreeError::EmptyWhiteout(_))));
}

#[test]
fn limits() {
    let mut tree = Tree::new(3, 10);
    tree.begin_layer();
    tree.file("a");
    tree.file("b");
    assert!(matches!(
        tree.add("c", Content::Symlink(b"123456789".as_slice().into())),
        Err(TreeError::TooManyNames { limit: 10, .. })
    ));
    tree.add("b", Content::Fifo).and_then(|()| tree.add("b", Content::Fifo)).unwrap_err();
    let mut tree = Tree::new(3, 10);
    tree.begin_layer();
    for name in ["a", "b", "c"] {
        tree.file(name);
    }
    let error = tree.add("d", Content::Fifo).unwrap_err();
    assert_eq!(error, TreeError::TooManyEntries { path: "d".into(), limit: 3 });
}

#[derive(Clone, Debug)]
enum Step {
    Directory(String),
    File(String),
    Hide(String),
    Clear(String),
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

proptest! {
    /// Within a layer it makes no difference when whiteouts come (OCI layer.md: they apply to lower layers only).
    #[test]
    fn whiteouts_in_any_order(
        lower in prop::collection::vec(a_path(), 0..12),
        upper in prop::collection::vec(a_path(), 0..6),
        whiteouts in prop::collection::vec((a_path(), any::<bool>(), any::<prop::sample::Index>()), 0..6),
    ) {
        // Of names of which one is below the other only directories: their order matters even without whiteouts.
        let entries = |paths: &[String]| -> Vec<Step> {
            let is_parent = |path: &String| paths.iter().any(|p| p.starts_with(&format!("{path}/")));
            paths.iter().map(|p| if is_parent(p) { Step::Directory(p.clone()) } else { Step::File(p.clone()) }).collect()
        };
        // A lower file in the way of an upper name would be an error, or not, by order.
        let lower: Vec<String> = lower.into_iter().map(|path| path + "/x").collect();
        let steps = entries(&upper);
        let hidden: Vec<(Step, usize)> = whiteouts.into_iter().map(|(path, opaque, index)| {
            (if opaque { Step::Clear(path) } else { Step::Hide(path) }, index.index(steps.len() + 1))
        }).collect();
        let run = |order: &[Step]| {
            let mut tree = tree();
            for path in &lower {
                tree.file(path);
            }
            tree.begin_layer();
            for step in order {
                match step {
                    Step::Directory(path) => tree.dir(path),
                    Step::File(path) => tree.file(path),
                    Step::Hide(path) => tree.hide(path),
                    Step::Clear(path) => tree.clear_all(path),
                }
            }
            tree.listing()
        };
        let first: Vec<Step> = hidden.iter().map(|(step, _)| step.clone()).chain(steps.iter().cloned()).collect();
        let last: Vec<Step> = steps.iter().cloned().chain(hidden.iter().map(|(step, _)| step.clone())).collect();
        let mut mixed = steps.clone();
        for (step, at) in &hidden {
            mixed.insert(*at, step.clone());
        }
        prop_assert_eq!(run(&first), run(&last));
        prop_assert_eq!(run(&first), run(&mixed));
    }
}
