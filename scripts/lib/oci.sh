# shellcheck shell=bash
# Sourced: writes OCI image layouts. The same input gives the same bytes.

# sha256 FILE: its hex digest.
sha256() { sha256sum "$1" | cut -d' ' -f1; }

# oci_blob LAYOUT FILE: moves FILE among the blobs and prints `"digest":"...","size":N`.
oci_blob() {
    local hex size
    hex=$(sha256 "$2")
    size=$(stat --format=%s "$2")
    mv "$2" "$1/blobs/sha256/$hex"
    printf '"digest":"sha256:%s","size":%s' "$hex" "$size"
}

# oci_layout LAYOUT CONFIG EPOCH TAR...: an image tagged `latest` with one gzip layer for each TAR, which are removed.
# CONFIG is a JSON file with the image configuration's `config` object; EPOCH is its `created`, in seconds.
oci_layout() {
    local layout=$1 config=$2 created tar descriptor diff_ids=() layers=() arch
    created=$(date --utc --date="@$3" +%Y-%m-%dT%H:%M:%SZ)
    arch=$(dpkg --print-architecture)
    shift 3
    mkdir -p "$layout/blobs/sha256"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    for tar in "$@"; do
        diff_ids+=("sha256:$(sha256 "$tar")")
        gzip --no-name --stdout "$tar" >"$tar.gz"
        rm "$tar"
        descriptor=$(oci_blob "$layout" "$tar.gz")
        layers+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",$descriptor}")
    done
    jq --compact-output --null-input --slurpfile config "$config" --arg created "$created" --arg arch "$arch" \
        '{created: $created, architecture: $arch, os: "linux", config: $config[0],
          rootfs: {type: "layers", diff_ids: $ARGS.positional},
          history: [$ARGS.positional[] | {created: $created, created_by: "voidrun scripts/images"}]}' \
        --args "${diff_ids[@]}" >"$layout/config.tmp"
    descriptor=$(oci_blob "$layout" "$layout/config.tmp")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"layers":[%s]}' \
        "\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",$descriptor}" \
        "$(
            IFS=,
            echo "${layers[*]}"
        )" >"$layout/manifest.tmp"
    descriptor=$(oci_blob "$layout" "$layout/manifest.tmp")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' \
        "{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",$descriptor,\"platform\":{\"architecture\":\"$arch\",\"os\":\"linux\"},\"annotations\":{\"org.opencontainers.image.ref.name\":\"latest\"}}" \
        >"$layout/index.json"
}
