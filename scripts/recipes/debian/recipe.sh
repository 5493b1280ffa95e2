# shellcheck shell=bash
# A Debian image of three layers, as builders make them: a base, and two that change, delete and replace what is below.
# For the tests: umoci writes the upper layers (whiteouts, hard links, metadata changes) and is the oracle for the result.
# Sourced by scripts/images.

EPOCH=1767225600 # 2026-01-01

# repack LAYOUT BUNDLE: what changed in BUNDLE becomes a layer on top.
repack() {
    umoci repack --image "$1:latest" --refresh-bundle --history.created="$(date --utc --date="@$EPOCH" +%Y-%m-%dT%H:%M:%SZ)" "$2" >&2
}

# build LAYOUT WORK: writes the image's OCI layout; WORK is an empty directory for what is made on the way.
build() {
    local layout=$1 bundle=$2/bundle root=$2/bundle/rootfs rootless=()
    ((EUID == 0)) || rootless=(--rootless)
    say "debian: Debian packages (mmdebstrap, $SUITE)"
    debian_tar "$2/layer.tar" "$EPOCH" --include=adduser,iputils-ping
    oci_layout "$layout" "$RECIPE/config.json" "$EPOCH" "$2/layer.tar"

    say "debian: the second layer"
    umoci unpack "${rootless[@]}" --image "$layout:latest" "$bundle" >&2
    echo 'changed by the second layer' >"$root/etc/motd"
    echo 'appended' >>"$root/etc/issue"
    rm -r "$root/usr/share/zoneinfo" "$root/etc/debian_version"
    mkdir -p "$root/srv/data/deep/er" "$root/srv/replaced-by-file" "$root/srv/replaced-by-link"
    for name in one two three; do echo "$name" >"$root/srv/data/deep/er/$name"; done
    echo linked >"$root/srv/linked"
    ln "$root/srv/linked" "$root/srv/data/linked-too"
    ln -s data "$root/srv/link"
    echo inside >"$root/srv/replaced-by-file/inside"
    echo inside >"$root/srv/replaced-by-link/inside"
    # A file's metadata alone, and a name of many bytes.
    chmod 4750 "$root/usr/bin/env"
    echo long >"$root/srv/$(printf 'n%.0s' {1..200})"
    repack "$layout" "$bundle"

    say "debian: the third layer"
    # A directory emptied and filled anew, which a builder may write as an opaque directory.
    rm -r "$root/srv/data/deep"
    mkdir "$root/srv/data/deep"
    echo new >"$root/srv/data/deep/new"
    rm -r "$root/srv/replaced-by-file" "$root/srv/replaced-by-link" "$root/srv/link"
    echo 'a file now' >"$root/srv/replaced-by-file"
    ln -s data "$root/srv/replaced-by-link"
    mkdir "$root/srv/link"
    echo 'a directory now' >"$root/srv/link/inside"
    # One name of a file from the layer below goes, the other stays; and a new name for a file of the base.
    rm "$root/srv/linked"
    ln "$root/usr/bin/perl" "$root/srv/perl"
    mkdir "$root/usr/share/zoneinfo"
    echo back >"$root/usr/share/zoneinfo/back"
    rm "$root/etc/motd"
    repack "$layout" "$bundle"
    umoci gc --layout "$layout" >&2
}
