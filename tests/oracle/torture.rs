//! An image that holds everything a tar can hold, in layers that change each other.
//!
//! Each topic is a function with a directory of its own in the image, and writes to as many of the layers as it needs.

use std::path::{Path, PathBuf};

use tar::EntryType;

use crate::archive::{Dialect, Layer, Meta, Reader, Sparse, Stretch};

const LAYERS: usize = 4;

/// Writes the layers' tars into `directory`, and returns them from the lowest to the highest. One of them is empty.
pub fn layers(directory: &Path, reader: Reader) -> Vec<PathBuf> {
    let mut layers: Vec<Layer> =
        (0..LAYERS).map(|n| Layer::create(&directory.join(format!("layer-{n}.tar")), reader)).collect();
    layers[0].dir("./", &Meta::mode(0o755).mtime(1_600_000_000, 5));
    for topic in [
        kinds,
        sizes,
        modes,
        owners,
        times,
        xattrs,
        acls,
        sparse,
        names,
        hard_links,
        symlinked_parents,
        replacements,
        whiteouts,
        opaque_directories,
        implied_parents,
        spellings,
        old_headers,
        many,
    ] {
        topic(&mut layers);
    }
    let mut paths: Vec<PathBuf> = layers.into_iter().map(Layer::finish).collect();
    paths.insert(2, Layer::create(&directory.join("empty.tar"), reader).finish());
    paths
}

fn plain() -> Meta {
    Meta::mode(0o644)
}

fn dir() -> Meta {
    Meta::mode(0o755)
}

fn kinds(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("kinds", &dir());
    l.file("kinds/file", "content", &plain());
    l.fifo("kinds/fifo", &Meta::mode(0o600).owner(7, 8));
    for (name, major, minor) in
        [("null", 1, 3), ("last-old", 255, 255), ("big-minor", 259, 256), ("biggest", 4095, (1 << 20) - 1)]
    {
        l.device(
            &format!("kinds/char-{name}"),
            EntryType::Char,
            major,
            minor,
            &Meta::mode(0o666).owner(0, 5),
        );
        l.device(
            &format!("kinds/block-{name}"),
            EntryType::Block,
            major,
            minor,
            &Meta::mode(0o660).owner(0, 6),
        );
    }
    // A target of up to 59 bytes stands in the inode; PATH_MAX bounds it at 4095.
    for length in [1, 59, 60, 61, 100, 101, 255, 4095] {
        let target = "t/".repeat(length).into_bytes();
        l.symlink(format!("kinds/symlink-{length}"), &target[..length], &Meta::mode(0o777).owner(9, 10));
    }
    l.dialect = Dialect::Gnu;
    l.symlink("kinds/symlink-gnu", "g/".repeat(700), &Meta::mode(0o777));
    l.dialect = Dialect::Pax;
}

/// Around the sizes of a tar record, a block, and what an extent can hold.
fn sizes(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("sizes", &dir());
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 65_536, 1_048_577, 4 << 20] {
        let content: Vec<u8> =
            (0..size).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        l.file(format!("sizes/{size}"), content, &plain());
    }
    l.file("sizes/zeros", vec![0; 100_000], &plain());
    // Longer than one extent (32768 blocks).
    l.file("sizes/two-extents", vec![b'x'; (128 << 20) + 1], &plain());
}

fn modes(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("modes", &dir());
    for mode in [0, 0o001, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
        l.file(format!("modes/file-{mode:04o}"), "", &Meta::mode(mode));
        l.dir(format!("modes/dir-{mode:04o}"), &Meta::mode(mode));
    }
    // Only the metadata of a directory changes; what is inside stays.
    l.dir("modes/changed", &dir().xattr("user.below", "gone"));
    l.touch("modes/changed/inside");
    layers[1].dir("modes/changed", &Meta::mode(0o3700).owner(1, 2).mtime(1, 2).xattr("user.above", "kept"));
}

fn owners(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("owners", &dir());
    for id in [1, 65_534, 65_535, 65_536, 0o7_777_777, 0o10_000_001, (1 << 31) + 1, u64::from(u32::MAX - 1)] {
        l.file(format!("owners/pax-{id}"), "", &plain().owner(id, id - 1));
        l.dialect = Dialect::Gnu;
        l.dir(format!("owners/gnu-{id}"), &dir().owner(id, id - 1));
        l.dialect = Dialect::Pax;
    }
}

fn times(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("times", &dir());
    for (name, seconds, nanoseconds) in [
        ("first", -(1 << 31), 0),
        ("pre-1970", -1_000_000_000, 0),
        ("one-ns-before-1970", -1, 999_999_999),
        ("half-before-1970", -2, 500_000_000),
        ("1970", 0, 0),
        ("one-ns", 0, 1),
        ("ns", 1_234_567_890, 123_456_789),
        ("last-31-bit", (1 << 31) - 1, 999_999_999),
        ("2038", 1 << 31, 0),
        ("last-32-bit", (1 << 32) - 1, 1),
        ("2106", 1 << 32, 2),
        ("2200", 7_258_118_400, 250_000_000),
        ("last", (1 << 34) - (1 << 31) - 1, 999_999_999),
    ] {
        let time = |meta: Meta| meta.mtime(seconds, nanoseconds);
        l.file(format!("times/{name}"), "", &time(plain()));
        l.symlink(format!("times/{name}-symlink"), "x", &time(Meta::mode(0o777)));
        l.dir(format!("times/{name}-dir"), &time(dir()));
    }
    l.dialect = Dialect::Gnu;
    l.file("times/gnu-pre-1970", "", &plain().mtime(-86_400, 0));
    l.file("times/gnu-2200", "", &plain().mtime(7_258_118_400, 0));
    l.dialect = Dialect::Pax;
}

/// What fits beside an inode is 92 bytes; the rest has one block.
fn xattrs(layers: &mut [Layer]) {
    // VFS_CAP_REVISION_2, effective, CAP_NET_RAW permitted.
    let capability =
        [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let l = &mut layers[0];
    l.dir("xattrs", &dir().xattr("user.on-a-directory", "yes").xattr("trusted.note", "y"));
    l.file("xattrs/small", "", &plain().xattr("user.a", "1"));
    l.file("xattrs/empty-value", "", &plain().xattr("user.empty", ""));
    l.file("xattrs/capability", "", &Meta::mode(0o755).xattr("security.capability", capability.clone()));
    l.file("xattrs/bytes", "", &plain().xattr("user.bytes", *b"\0new\nline = \xff\0\n"));
    l.file("xattrs/equals", "", &plain().xattr("user.equals", "a=b=c"));
    for length in [30, 60, 70, 80, 90, 100, 1000, 3900] {
        l.file(format!("xattrs/value-{length}"), "", &plain().xattr("user.v", vec![b'v'; length]));
    }
    // The order on disk is by index, length of the name, name; not by name alone.
    let mut many = plain();
    for name in [
        "user.zz",
        "user.a",
        "user.bbb",
        "user.aaa",
        "trusted.t",
        "security.s",
        "user.b",
        "trusted.tt",
        "user.cc",
    ] {
        many = many.xattr(name, format!("value of {name}"));
    }
    l.file("xattrs/many", "", &many.clone().xattr("user.large", vec![7; 2000]));
    l.file("xattrs/many-beside-the-inode", "", &plain().xattr("user.b", "1").xattr("user.a", "2"));
    l.symlink("xattrs/symlink", "small", &Meta::mode(0o777).xattr("trusted.on-a-symlink", "yes"));
    l.fifo("xattrs/fifo", &plain().xattr("trusted.on-a-fifo", "yes"));
    l.file("xattrs/linked", "", &many);
    l.hard_link("xattrs/linked-too", "xattrs/linked", &many);
    // A name of 255 bytes, the prefix included.
    l.file("xattrs/long-name", "", &plain().xattr(
        concat!("user.", "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
            "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
            "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"),
        "1",
    ));
    // The upper layer's entry has none, so there are none.
    l.file("xattrs/dropped", "", &plain().xattr("user.dropped", "1"));
    l.dir("xattrs/dropped-dir", &dir().xattr("user.dropped", "1").xattr("user.changed", "1"));
    layers[1].file("xattrs/dropped", "", &plain());
    layers[1].dir("xattrs/dropped-dir", &dir().xattr("user.changed", "2"));
}

/// POSIX ACLs in the kernel's form for system calls: version 2, then (tag, permissions, id) sorted.
fn acls(layers: &mut [Layer]) {
    const NONE: u32 = u32::MAX;
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    };
    // owner rw, user 1000 rwx, user 70000 r, group r, group 2000 -, mask rwx, other -
    let access = acl(&[
        (1, 6, NONE),
        (2, 7, 1000),
        (2, 4, 70_000),
        (4, 4, NONE),
        (8, 0, 2000),
        (16, 7, NONE),
        (32, 0, NONE),
    ]);
    let default = acl(&[(1, 7, NONE), (2, 5, 1000), (4, 5, NONE), (16, 5, NONE), (32, 5, NONE)]);
    let l = &mut layers[0];
    l.dir("acls", &dir());
    l.file("acls/file", "", &Meta::mode(0o670).xattr("system.posix_acl_access", access.clone()));
    l.dir(
        "acls/dir",
        &Meta::mode(0o670)
            .xattr("system.posix_acl_access", access.clone())
            .xattr("system.posix_acl_default", default.clone()),
    );
    // A default ACL is for files that are created, not for those that are unpacked.
    l.dir("acls/default-only", &dir().xattr("system.posix_acl_default", default));
    l.file("acls/default-only/file", "", &plain());
    l.dir("acls/default-only/dir", &dir());
    // No more than permission bits: kept for what is to be created, for access it is not an attribute.
    let minimal = acl(&[(1, 7, NONE), (4, 5, NONE), (32, 0, NONE)]);
    l.dir("acls/minimal-default", &dir().xattr("system.posix_acl_default", minimal.clone()));
    l.file("acls/minimal-access", "", &Meta::mode(0o750).xattr("system.posix_acl_access", minimal));
    l.file(
        "acls/with-xattr",
        "",
        &Meta::mode(0o670).xattr("user.x", "y").xattr("system.posix_acl_access", access),
    );
}

fn sparse(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("sparse", &dir());
    let stretch = |offset: u64, length: usize| Stretch {
        offset,
        data: (0..length).map(|at| (at as u64 + offset) as u8 | 1).collect(),
    };
    for how in [Sparse::OldGnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        let mut file = |name: &str, size: u64, stretches: &[Stretch]| {
            l.sparse(&format!("sparse/{how:?}-{name}").to_lowercase(), how, size, stretches, &plain());
        };
        // A sparse map may end with an empty stretch at the file's end, as GNU tar writes it for a hole there.
        file("hole-at-the-end", 1 << 20, &[stretch(0, 5000), stretch(1 << 20, 0)]);
        file("hole-at-the-start", (1 << 20) + 10, &[stretch(1 << 20, 10)]);
        file("only-a-hole", 3 << 20, &[stretch(3 << 20, 0)]);
        file(
            "unaligned",
            100_000,
            &[stretch(1, 1), stretch(511, 3), stretch(5000, 10_000), stretch(99_999, 1)],
        );
        // Adjacent stretches, and several in one block.
        file(
            "adjacent",
            20_000,
            &[stretch(0, 512), stretch(512, 512), stretch(1536, 512), stretch(8192, 4096)],
        );
        file("exact-block", 8192, &[stretch(4096, 4096)]);
    }
    // More extents than the inode holds (4), and than one leaf holds (340).
    let many: Vec<Stretch> = (0..5).map(|n| stretch(n * 16_384, 4096)).collect();
    l.sparse("sparse/five-extents", Sparse::OldGnu, 5 * 16_384, &many, &plain());
    let many: Vec<Stretch> = (0..1000).map(|n| stretch(n * 8192, 4096)).collect();
    l.sparse("sparse/thousand-extents", Sparse::Pax10, 1000 * 8192, &many, &plain());
    l.sparse("sparse/thousand-extents-old", Sparse::OldGnu, 1000 * 8192, &many, &plain());
    // Over 4 GiB, with data on both sides of the border.
    let far = (4 << 30) - 4096;
    l.sparse(
        "sparse/over-4-gib",
        Sparse::Pax10,
        (4 << 30) + 12_345,
        &[stretch(0, 10), stretch(far, 8192), stretch((4 << 30) + 12_344, 1)],
        &plain(),
    );
    layers[1].hard_link("sparse/over-4-gib-linked", "sparse/over-4-gib", &plain());
}

fn names(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("names", &dir());
    let longest = "n".repeat(255);
    l.file(format!("names/{longest}"), "", &plain());
    l.dir(format!("names/d{}", &longest[1..]), &dir());
    l.file(format!("names/d{}/{longest}", &longest[1..]), "in it", &plain());
    // The header's field has 100 bytes.
    for length in [99, 100, 101] {
        l.file(format!("names/{}", "l".repeat(length - 6)), "", &plain());
    }
    for (dialect, top) in [(Dialect::Pax, "pax"), (Dialect::Gnu, "gnu")] {
        l.dialect = dialect;
        let mut path = format!("names/{top}");
        l.dir(&path, &dir());
        for _ in 0..15 {
            path = format!("{path}/{}", &longest[..200]);
            l.dir(format!("{path}/"), &dir());
        }
        l.file(format!("{path}/deep"), "deep", &plain());
        l.symlink(format!("{path}/symlink"), "deep", &Meta::mode(0o777));
        l.hard_link(format!("{path}/linked"), format!("{path}/deep"), &plain());
    }
    l.dialect = Dialect::Pax;
    // A name is bytes: not UTF-8, control characters, what shells and formats mistake.
    let odd: [&[u8]; 9] =
        [b"\xff\xfe", b"caf\xe9", b"new\nline", b"tab\t", b"back\\slash", b" ", b"-rf", b"*", b"\x01\x7f"];
    for name in odd {
        l.file([b"names/", name].concat(), name, &plain());
    }
    l.dir("names/\u{65e5}\u{672c}\u{8a9e}", &dir());
    l.symlink(b"names/symlink-\xff", b"\xff\xfe", &Meta::mode(0o777));
    // Long and not UTF-8, so that the bytes go through an extended header.
    l.file([b"names/".as_slice(), &[0xfe; 150]].concat(), "", &plain());
    for name in ["...", "..name", ".hidden", ".wh", "wh.name", "lost+found"] {
        l.file(format!("names/{name}"), "", &plain());
    }
}

fn hard_links(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("links", &dir());
    l.dir("links/sub", &dir());
    for name in ["a", "removed", "below", "overwritten", "target"] {
        l.touch(&format!("links/{name}"));
    }
    l.hard_link("links/b", "links/a", &plain());
    l.hard_link("links/sub/c", "./links/b", &plain());
    l.hard_link("links/kept", "links/removed", &plain());
    l.symlink("links/symlink", "a", &Meta::mode(0o777));
    l.hard_link("links/symlink-too", "links/symlink", &Meta::mode(0o777));
    l.fifo("links/fifo", &Meta::mode(0o600));
    l.hard_link("links/fifo-too", "links/fifo", &Meta::mode(0o600));
    l.symlink("links/to-sub", "sub", &Meta::mode(0o777));

    // A new file in the place of one name: the others keep the old one.
    layers[1].touch("links/a");
    layers[1].whiteout("links/removed");
    // New names of a file of the layer below, one through a symlink to its directory, one over a file.
    layers[1].hard_link("links/above", "links/below", &plain());
    layers[1].hard_link("links/through", "links/to-sub/c", &plain());
    layers[1].hard_link("links/overwritten", "links/target", &plain());
    layers[2].hard_link("links/higher", "links/above", &plain());
    // A file of this layer with a name that the layer below used.
    layers[2].touch("links/b");
    layers[2].hard_link("links/b-too", "links/b", &plain());
    layers[3].whiteout("links/below");
    // A name that is replaced within a layer, after it was linked.
    layers[3].touch("links/twice");
    layers[3].hard_link("links/twice-linked", "links/twice", &plain());
    layers[3].file("links/twice", "the second", &plain());
    // More names than any other.
    for n in 0..1000 {
        layers[3].hard_link(format!("links/sub/{n}"), "links/target", &plain());
    }
}

fn symlinked_parents(layers: &mut [Layer]) {
    let l = &mut layers[0];
    let link = Meta::mode(0o777);
    l.dir("through", &dir());
    l.dir("through/real", &dir());
    l.touch("through/real/old");
    l.symlink("through/relative", "real", &link);
    l.symlink("through/absolute", "/through/real", &link);
    // Beyond the root is the root.
    l.symlink("through/beyond", "../../../../through/real", &link);
    l.symlink("through/chain", "chain-2", &link);
    l.symlink("through/chain-2", "./chain-3/", &link);
    l.symlink("through/chain-3", "relative/../absolute", &link);
    l.symlink("through/dangling", "/through/nowhere", &link);
    l.touch("through/relative/same-layer");
    for name in ["relative", "absolute", "beyond", "chain", "dangling"] {
        layers[1].touch(&format!("through/{name}/by-{name}"));
    }
    layers[1].dir("through/chain/dir", &Meta::mode(0o700));
    layers[1].whiteout("through/relative/old");
    // The last component is not followed: a file in the place of the symlink.
    layers[3].touch("through/chain");
}

fn replacements(layers: &mut [Layer]) {
    let link = Meta::mode(0o777);
    let l = &mut layers[0];
    l.dir("swap", &dir());
    l.dir("swap/other", &dir());
    for name in ["dir-link-dir", "dir-file", "dir-link", "dir-fifo", "dir-dir"] {
        l.dir(format!("swap/{name}"), &dir());
        l.touch(&format!("swap/{name}/below"));
    }
    l.symlink("swap/link-dir", "other", &link);
    for name in ["file-dir", "file-link", "file-device"] {
        l.touch(&format!("swap/{name}"));
    }
    l.device("swap/device-file", EntryType::Char, 1, 3, &plain());

    let l = &mut layers[1];
    l.symlink("swap/dir-link-dir", "other", &link);
    l.touch("swap/dir-file");
    l.symlink("swap/dir-link", "other", &link);
    l.fifo("swap/dir-fifo", &plain());
    l.dir("swap/dir-dir", &Meta::mode(0o700));
    l.dir("swap/link-dir", &dir());
    l.touch("swap/link-dir/inside");
    l.dir("swap/file-dir", &dir());
    l.touch("swap/file-dir/inside");
    l.symlink("swap/file-link", "dir-dir", &link);
    l.device("swap/file-device", EntryType::Block, 8, 1, &plain());
    l.touch("swap/device-file");

    // A directory again: what the first layer had in it does not come back.
    layers[2].dir("swap/dir-link-dir", &dir());
    layers[2].touch("swap/dir-link-dir/above");
    layers[3].dir("swap/dir-file", &dir());
}

fn whiteouts(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("whiteouts", &dir());
    for name in ["file", "before", "after", "changed", "changed-before", "back", "m"] {
        l.touch(&format!("whiteouts/{name}"));
    }
    for name in ["dir", "dir-back", "dir-file"] {
        l.dir(format!("whiteouts/{name}"), &dir());
        l.dir(format!("whiteouts/{name}/sub"), &dir());
        l.touch(&format!("whiteouts/{name}/sub/file"));
    }
    l.symlink("whiteouts/link", "dir-back", &Meta::mode(0o777));
    l.symlink("whiteouts/dangling", "nothing", &Meta::mode(0o777));
    l.device("whiteouts/device", EntryType::Char, 0, 0, &plain());

    let l = &mut layers[1];
    // Before and after their siblings; one that is deleted and made in the same layer, in either order, stays: a whiteout
    // hides only what is below.
    l.whiteout("whiteouts/before");
    l.touch("whiteouts/a-sibling");
    l.touch("whiteouts/z-sibling");
    l.whiteout("whiteouts/after");
    l.touch("whiteouts/changed");
    l.whiteout("whiteouts/changed");
    l.whiteout("whiteouts/changed-before");
    l.touch("whiteouts/changed-before");
    for name in ["file", "dir", "back", "never-was", "link", "dangling", "device", "dir-file"] {
        l.whiteout(&format!("whiteouts/{name}"));
    }
    l.touch("whiteouts/dir-file");
    // The directory is made anew with another content.
    l.whiteout("whiteouts/dir-back");
    l.dir("whiteouts/dir-back", &Meta::mode(0o711));
    l.touch("whiteouts/dir-back/new");

    layers[2].dir("whiteouts/back", &dir());
    layers[2].whiteout("whiteouts/a-sibling");
    layers[3].touch("whiteouts/a-sibling");
}

fn opaque_directories(layers: &mut [Layer]) {
    layers[0].dir("opaque", &dir());
    for name in ["first", "middle", "last", "empty", "deep", "twice"] {
        let l = &mut layers[0];
        l.dir(format!("opaque/{name}"), &dir());
        l.touch(&format!("opaque/{name}/old"));
        l.dir(format!("opaque/{name}/sub"), &dir());
        l.touch(&format!("opaque/{name}/sub/old"));
        layers[1].touch(&format!("opaque/{name}/old-1"));
    }
    let l = &mut layers[2];
    l.dir("opaque/first", &dir());
    l.opaque("opaque/first");
    l.touch("opaque/first/new");
    l.dir("opaque/first/sub", &Meta::mode(0o700));
    l.touch("opaque/first/sub/new");

    l.touch("opaque/middle/before");
    l.opaque("opaque/middle");
    l.touch("opaque/middle/old");

    l.dir("opaque/last", &Meta::mode(0o750));
    l.touch("opaque/last/new");
    l.dir("opaque/last/sub", &Meta::mode(0o700));
    l.touch("opaque/last/sub/new");
    l.opaque("opaque/last");

    l.opaque("opaque/empty");
    l.opaque("opaque/deep/sub");
    // What the layer between made is below as well.
    l.opaque("opaque/twice");
    l.touch("opaque/twice/new");
    layers[3].opaque("opaque/twice");
    layers[3].touch("opaque/twice/newest");
}

/// Parents that no entry names.
fn implied_parents(layers: &mut [Layer]) {
    layers[0].touch("implied/a/b/file");
    layers[0].dir("implied/c/d", &Meta::mode(0o700));
    layers[1].touch("implied/a/e/file");
    layers[1].symlink("implied/f/symlink", "x", &Meta::mode(0o777));
    layers[1].hard_link("implied/g/h/linked", "implied/a/b/file", &plain());
    // Named by a later layer: its metadata then.
    layers[0].touch("implied/named-later/file");
    layers[1].dir("implied/named-later", &Meta::mode(0o711).mtime(1_500_000_000, 0));
    // In the place of a file, without an entry of its own.
    layers[0].dir("implied/dir", &dir());
    layers[0].dir("implied/dir/within", &dir());
    layers[0].touch("implied/dir/within/file");
    layers[3].touch("implied/dir/within/file");
}

/// The same path, written in several ways, and more than once.
fn spellings(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("./spellings/", &dir());
    l.touch("./spellings/dot-slash");
    l.touch("spellings//double-slash");
    l.touch("spellings/./inner-dot");
    l.dir("spellings/dir///", &dir());
    l.hard_link("spellings/linked", "./spellings//dot-slash", &plain());
    // The last of several entries counts.
    l.file("spellings/duplicate", "first", &Meta::mode(0o600).xattr("user.first", "1"));
    l.file("spellings/duplicate", "second, and longer", &Meta::mode(0o640));
    l.dir("spellings/duplicate-dir", &Meta::mode(0o700));
    l.touch("spellings/duplicate-dir/file");
    l.dir("spellings/duplicate-dir", &Meta::mode(0o755));
    l.touch("spellings/file-then-dir");
    l.dir("spellings/file-then-dir", &dir());
    l.dir("spellings/dir-then-file", &dir());
    l.touch("spellings/dir-then-file/gone");
    l.touch("spellings/dir-then-file");
    layers[1].touch("./spellings/./dot-slash");
}

fn old_headers(layers: &mut [Layer]) {
    let l = &mut layers[0];
    l.dir("old", &dir());
    l.v7("old/file", b"a file of the seventh edition", &plain());
    l.v7("old/dir/", b"", &Meta::mode(0o750));
    l.global("comment", "of no effect");
    l.touch("old/after-a-global-header");
}

/// A directory whose entries would take a linear search long.
fn many(layers: &mut [Layer]) {
    layers[0].dir("many", &dir());
    for n in 0..100_000 {
        layers[0].file(format!("many/{n}"), "", &Meta::mode(0o600 + n % 8).mtime(i64::from(n), n));
    }
    for n in (0..100_000).step_by(1000) {
        layers[1].whiteout(&format!("many/{n}"));
    }
}
