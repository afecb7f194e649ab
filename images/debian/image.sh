# Sourced by builds of images on Debian 13 (toolbox, mpi), after lib.sh and
# oci.sh. An image is two layers: Debian, and what the build puts into
# $out/tools. $out is the product's folder.
# shellcheck disable=SC2154

# failed WORDS: ends the build with the end of its log.
failed() { tail -n 20 "$out/log" >&2; die "$1, the log is $out/log"; }

# image_begin NAME: makes empty folders: $out/built is for what is compiled.
image_begin() {
  phase "image $1"
  rm -rf "$out/oci" "$out/built" "$out/tools"
  mkdir -p "$out/oci/blobs/sha256" "$out/built" "$out/tools"
  : >"$out/log"
}

# image_packages BASE PACKAGE...: installs Debian packages into the image.
image_packages() {
  local base=$1
  shift
  changes_of "$base" "$out/tools" sh -c \
    'apt-get install -qy --no-install-recommends "$@" && apt-get clean' -- "$@" \
    >>"$out/log" 2>&1 || failed "apt-get install failed"
}

# image_end NAME BASE CONFIG: writes the image; CONFIG as oci_image has it.
image_end() {
  local lean debian tools
  lean=(--exclude=dev/* --exclude=var/lib/apt/lists/* --exclude=var/cache/apt/* --exclude=var/log/*
    --exclude=usr/sbin/policy-rc.d --exclude=etc/resolv.conf --exclude=etc/apt/apt.conf.d/*[Pp]roxy*)
  debian=$(oci_layer "$out/oci" "$2" "${lean[@]}")
  tools=$(oci_layer "$out/oci" "$out/tools" "${lean[@]}")
  oci_image "$out/oci" "$3" "$debian" "$tools"
  rm -rf "$out/built" "$out/tools"
  touch "$out/done"
  phase "$1 is there, $(du -sh "$out/oci" | cut -f1)"
}
