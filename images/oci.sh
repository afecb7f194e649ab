# Sourced by image builds: writes an OCI image layout from folders with tar,
# gzip and sha256sum alone, so no container tool is needed on the machine.
# Layers are reproducible: same content, same digest.

# oci_blob LAYOUT FILE: moves FILE into the layout, prints "<digest> <size>".
oci_blob() {
  local d
  d=$(sha256sum "$2" | cut -d' ' -f1)
  echo "sha256:$d $(stat -c %s "$2")"
  mv "$2" "$1/blobs/sha256/$d"
}

# oci_layer LAYOUT TREE [TAR-OPTION...]: adds TREE's content as a gzip layer;
# prints "<diff id> <digest> <size>". Member names do not start with "./",
# which Apptainer does not read.
oci_layer() { # runs in a command substitution: errors end it
  set -euo pipefail
  local layout=$1 tree=$2 diff t
  shift 2
  t=$(mktemp "$layout/layer.XXXXXX")
  (
    cd "$tree" && find . -mindepth 1 -maxdepth 1 -printf '%P\0' | LC_ALL=C sort -z |
      tar "$@" --sort=name --numeric-owner --mtime=@0 --clamp-mtime -cf "$t" --null --files-from=-
  )
  diff=$(sha256sum "$t" | cut -d' ' -f1)
  nice gzip -n -5 "$t"
  mv "$t.gz" "$t"
  echo "sha256:$diff $(oci_blob "$layout" "$t")"
}

# oci_image LAYOUT CONFIG LAYER...: CONFIG is the JSON of the image's "config"
# object, each LAYER a line of oci_layer. Writes config, manifest and index.
oci_image() {
  local layout=$1 config=$2 diffs= layers= l diff digest size
  shift 2
  for l; do
    read -r diff digest size <<<"$l"
    diffs+=",\"$diff\""
    layers+=",{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"$digest\",\"size\":$size}"
  done
  printf '{"architecture":"amd64","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$config" "${diffs#,}" >"$layout/config"
  read -r digest size <<<"$(oci_blob "$layout" "$layout/config")"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[%s]}' \
    "$digest" "$size" "${layers#,}" >"$layout/manifest"
  read -r digest size <<<"$(oci_blob "$layout" "$layout/manifest")"
  printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s}]}' \
    "$digest" "$size" >"$layout/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
}
