# shellcheck shell=bash
# Sourced by the recipes: a root file system from Debian's packages, as a tar, by mmdebstrap.

SUITE=trixie

# machine_mirror LABEL DEFAULT: where this machine's apt gets `Debian` or `Debian-Security` from.
machine_mirror() {
    local found
    # shellcheck disable=SC2016 # apt replaces these
    found=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s/^$1 //p" | head -n 1)
    echo "${found:-$2}"
}

# mmdebstrap keeps its own apt.conf in the new system's /tmp until it has ended: without that its apt would clean up on
# this machine instead.
# debian_tar TAR EPOCH OPTION...: mmdebstrap with what every image here wants: nothing of this machine, no documentation,
# no caches, no logs, and the same bytes at each run over the same packages. OPTIONs are mmdebstrap's.
debian_tar() {
    local tar=$1 epoch=$2 option options=() mirror security
    shift 2
    # How this machine reaches the archive (a proxy, a frozen mirror); removed from the image below.
    while read -r option; do options+=(--aptopt="$option"); done < <(
        apt-config dump | grep --extended-regexp --ignore-case \
            '^Acquire::([a-z]+::(Proxy|Verify-|CaInfo)|Check-(Valid-Until|Date) )' | grep --invert-match ' "";$'
    )
    mirror=$(machine_mirror Debian http://deb.debian.org/debian)
    security=$(machine_mirror Debian-Security http://deb.debian.org/debian-security)
    # shellcheck disable=SC2016 # mmdebstrap's shell expands $1, the root of the new system
    SOURCE_DATE_EPOCH=$epoch mmdebstrap --quiet --variant=minbase "${options[@]}" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$@" \
        --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/apt/apt.conf.d/99mmdebstrap"' \
        --customize-hook='mv "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/no-documentation"' \
        --customize-hook='echo localhost >"$1/etc/hostname"' \
        --customize-hook='cd "$1" && rm -rf var/log/* var/cache/* var/lib/apt/lists/*' \
        --customize-hook='find "$1/tmp" -mindepth 1 ! -name "mmdebstrap.apt.conf.*" -delete' \
        --customize-hook='cd "$1/etc" && rm -f passwd- group- shadow- gshadow- subuid- subgid-' \
        --customize-hook='rm -f "$1"/etc/apt/sources.list.d/* "$1/etc/apt/sources.list"' \
        --customize-hook="upload $ROOT/scripts/recipes/debian.sources /etc/apt/sources.list.d/debian.sources" \
        "$SUITE" "$tar" \
        "deb $mirror $SUITE main" "deb $mirror $SUITE-updates main" "deb $security $SUITE-security main" >&2
}
