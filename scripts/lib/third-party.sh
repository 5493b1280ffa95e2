# shellcheck shell=bash
# Sourced by scripts/dist: which libraries of others are in the binary, and their licences.

# third_party TRIPLE WORK: prints the crates that voidrun and the guest's agent are linked from, and the licences' texts, each once.
# WORK is a directory to be made, for what is collected on the way.
third_party() {
    local triple=$1 texts=$2 crate name version license manifest file text
    local -A licenses directories
    local -a linked
    mkdir "$texts"
    while IFS=$'\t' read -r name version license manifest; do
        licenses[$name $version]=$license
        directories[$name $version]=${manifest%/*}
    done < <(cargo metadata --locked --format-version 1 --filter-platform "$triple" |
        jq --raw-output '.packages[] | select(.source) | [.name, .version, .license // "", .manifest_path] | @tsv')
    # Ours have a path behind their version; what is listed a second time has (*).
    mapfile -t linked < <(cargo tree --locked --package voidrun --package agent --target "$triple" \
        --edges normal,no-proc-macro --prefix none --format '{p}' |
        sed --regexp-extended --quiet 's/^([^ ]+) v([^ ]+)( \(\*\))?$/\1 \2/p' | LC_ALL=C sort --unique)
    ((${#linked[@]})) || fail "cargo tree names no crate"

    cat <<'END'
voidrun and the agent that it carries are linked from these crates of https://crates.io, from Rust's standard library
(MIT OR Apache-2.0, The Rust Project Contributors) and from musl (MIT, Copyright 2005-2020 Rich Felker and others). The
texts of the licences, as the crates have them, are below. Where a crate leaves the choice, any of its licences will do.
END
    echo
    for crate in "${linked[@]}"; do
        [[ -n ${licenses[$crate]:-} ]] || fail "the crate $crate names no licence"
        printf '%-44s %s\n' "$crate" "${licenses[$crate]}"
        while read -r file; do
            text=$texts/$(sha256sum "$file" | cut -d' ' -f1)
            [[ -e $text ]] || cp "$file" "$text"
            echo "${crate% *}" >>"$text.crates"
        done < <(find "${directories[$crate]}" -maxdepth 2 -type f ! -name '*.rs' \
            \( -iname 'license*' -o -iname 'licence*' -o -iname 'copying*' -o -iname 'copyright*' -o -iname 'notice*' \))
    done
    for text in "$texts"/*.crates; do
        printf '\n%s\n' "------------------------------------------------------------------------------"
        uniq "$text" | paste --serial --delimiters=' ' | fold --spaces --width 110
        echo
        cat "${text%.crates}"
    done
}
