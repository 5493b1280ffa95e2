# shellcheck shell=bash
# Sourced by the scripts: where things are, how they speak, and how they get what they need.
# Nothing here asks a question. What is missing is installed where that is allowed, and said; else the line that does it is printed.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC2034 # for those that source this
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/voidrun
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

# Progress goes to standard error; standard output is for what a caller reads.
say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need_rust: a cargo that is new enough for Cargo.toml's rust-version.
need_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
    found=$( (cd "$ROOT" && cargo --version) 2>/dev/null | cut -d' ' -f2)
    if [[ -n $found ]] && printf '%s\n%s\n' "$wanted" "$found" | sort --check=quiet --version-sort; then
        return
    fi
    fail "Rust $wanted or newer is needed, and ${found:-none} was found. Get it with

    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain $wanted

then open a new shell and run this again."
}

# need_packages NAME...: Debian packages; the missing ones are installed.
need_packages() {
    local name missing=() as_root=()
    command -v dpkg-query >/dev/null ||
        fail "this is not a Debian machine; install the counterparts of these packages and of dpkg yourself: $*"
    for name in "$@"; do
        dpkg-query --show --showformat='${db:Status-Status}\n' "$name" 2>/dev/null | grep --quiet '^installed$' ||
            missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        sudo -n true 2>/dev/null || fail "these Debian packages are missing; install them and run this again:

    sudo apt-get install --no-install-recommends ${missing[*]}"
        as_root=(sudo -n)
    fi
    say "installing Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get update --quiet=2 >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}" >&2
    # The package starts a registry on port 5000 at once and at each boot; the tests start their own.
    if [[ " ${missing[*]} " == *" docker-registry "* && -d /run/systemd/system ]]; then
        "${as_root[@]}" systemctl disable --now --quiet docker-registry || true
    fi
}

# What each job needs. A C compiler is for the crates with C inside (ring, zstd).
need_build_packages() { need_packages gcc libc6-dev; }
need_node() {
    local found
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then need_packages nodejs npm; fi
    found=$(node --version)
    [[ $found =~ ^v(2[0-9]|[3-9][0-9])\. ]] ||
        fail "the SDK needs Node.js 20 or newer, and $found was found. Get it from https://nodejs.org, put it into PATH and run this again."
}
# Debian keeps what makes an environment apart from the interpreter.
need_python() {
    command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3 python3-venv
}
need_image_packages() {
    need_packages mmdebstrap debian-archive-keyring umoci jq gzip
    ((EUID == 0)) || need_packages uidmap
    # Any npm will do to fetch packages by the lock file; Debian's is large, so only where there is none.
    command -v npm >/dev/null || need_packages npm
}
need_test_packages() {
    need_packages e2fsprogs umoci skopeo docker-registry apache2-utils zstd attr acl libcap2-bin iproute2 iputils-ping iperf3 curl jq openssl python3-pip acpica-tools busybox-static systemd
}
# libelf is for objtool, which the kernel's mitigations need; lz4 packs the bzImage.
need_kernel_packages() { need_packages gcc libc6-dev make flex bison bc perl libelf-dev xz-utils lz4; }
need_lab_packages() { need_packages qemu-system-x86 busybox-static cpio gcc libc6-dev; }

# need_target TRIPLE: the standard library for another target.
need_target() {
    [[ -d $(cd "$ROOT" && rustc --print sysroot)/lib/rustlib/$1/lib ]] && return
    command -v rustup >/dev/null || fail "Rust's target $1 is missing and there is no rustup to add it"
    say "adding Rust's target $1"
    (cd "$ROOT" && rustup target add "$1") >&2
}

# need_fuzz: a nightly compiler and cargo-fuzz.
need_fuzz() {
    need_packages g++ # libFuzzer is C++
    command -v rustup >/dev/null || fail "fuzzing needs a nightly Rust, and there is no rustup to get it"
    if ! rustup toolchain list | grep --quiet '^nightly'; then
        say "installing Rust's nightly toolchain, for fuzzing"
        rustup toolchain install nightly --profile minimal >&2
    fi
    if ! cargo fuzz --version >/dev/null 2>&1; then
        say "installing cargo-fuzz"
        cargo install cargo-fuzz --locked >&2
    fi
}

# release_binary: prints the path of `voidrun`; $VOIDRUN names one that is there already, else it is built.
release_binary() {
    if [[ -n ${VOIDRUN:-} ]]; then
        [[ -x $VOIDRUN ]] || fail "VOIDRUN=$VOIDRUN is not an executable file"
        echo "$VOIDRUN"
        return
    fi
    need_rust
    need_build_packages
    need_target x86_64-unknown-linux-musl # the guest's agent
    say "building voidrun (release)"
    (cd "$ROOT" && cargo build --release --locked --quiet) >&2
    echo "$TARGET/release/voidrun"
}
