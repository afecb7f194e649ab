#!/bin/bash
# Builds one application of apps.json from its Go module, and lays it out as the bundle that
# `hpk install --from` takes. Prints the bundle's folder as its last line; no root is needed.
#
#   build.sh NAME         NAME: see apps.json
#
#   manifest.yaml         what upstream's kustomizations make
#   images/<name>/        its images, as OCI layouts: one program each, no other file
#   bin/                  commands for the user
#
# The module is checked against the sum in apps.json, and built with its own go.mod and go.sum. It is kept in
# $HPK_CACHE/app-<name>-<key>, the key being the content of what decides it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
. "$here/../oci.sh"
name=${1:?usage: build.sh NAME}
need jq jq
command -v go >/dev/null || die "no go command: install Go 1.26 or later"
app=$(jq -e --arg name "$name" '.[] | select(.name == $name)' "$here/apps.json") \
  || die "$name: apps.json has $(jq -r 'map(.name) | join(", ")' "$here/apps.json")"
of() { jq -r "$1" <<<"$app"; }
kubectl=$("$here/../control-plane/programs.sh" kubectl | tail -n 1)/kubectl

# Settings are made when it is installed, so they do not decide what is built.
decides=$(jq -cS 'del(.settings, .title, .manifest_sha256)' <<<"$app")
added=()
if [ -d "$here/$name" ]; then mapfile -t added < <(cd "$here/$name" && find . -type f -printf '%P\n' | LC_ALL=C sort); fi
key=$({
  echo "$decides"
  cat "$here"/../{lib,oci}.sh "$here/build.sh"
  for file in "${added[@]}"; do sha256sum <"$here/$name/$file"; done
  go version
} | sha256sum | cut -c1-16)
out=$HPK_CACHE/app-$name-$key
locked "$out"
bundle=$out/$name-$(of .version)
if [ ! -e "$out/done" ]; then
  rm -rf "$bundle" "$out/source"
  mkdir -p "$bundle"/{images,bin}
  module=$(of .module)@$(of .version)
  # Outside of any module, so that nothing but the name decides.
  download=$(cd "$out" && GOWORK=off GOFLAGS=-mod=mod go mod download -json "$module") || die "$module cannot be had: $download"
  [ "$(jq -r .Sum <<<"$download")" = "$(of .sum)" ] || die "$module has another sum than apps.json says"
  # A copy, for some kustomizations and embedded folders cannot be made from what is read-only.
  cp -r --no-preserve=mode "$(jq -r .Dir <<<"$download")" "$out/source"
  # What the module lacks and does not compile without: files of ours, in a folder of the application's name. None of
  # upstream's is replaced.
  for file in "${added[@]}"; do
    [ ! -e "$out/source/$file" ] || die "$module has $file itself: remove images/apps/$name/$file"
    install -D -m 644 "$here/$name/$file" "$out/source/$file"
  done
  while read -r folder; do
    echo ---
    "$kubectl" kustomize "$out/source/$folder" 2>"$out/log" || { cat "$out/log" >&2; die "kubectl kustomize $folder failed"; }
  done < <(of '.kustomize[]') >"$bundle/manifest.yaml"
  program() { # program PACKAGE DESTINATION
    phase "building $name: $(basename "$2")"
    (cd "$out/source" && CGO_ENABLED=0 GOWORK=off GOFLAGS=-mod=readonly nice go build -p 2 -trimpath \
      -ldflags "-s -w $(of '.flags // ""')" -o "$2" "$1")
  }
  while read -r image; do
    image_name=$(jq -r .name <<<"$image")
    oci=$bundle/images/$image_name root=$out/root
    rm -rf "$root"
    mkdir -p "$oci/blobs/sha256" "$root"/{etc,tmp}
    chmod 1777 "$root/tmp"
    program "$(jq -r .package <<<"$image")" "$root$(jq -r .path <<<"$image")"
    # The public certificate authorities of this machine, for programs that speak https.
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
      install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    fi
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    config=$(jq -c '{User: .user, Entrypoint: [.path], Env: ["PATH=/bin:/usr/bin:/sbin"]}' <<<"$image")
    oci_image "$oci" "$config" "$(oci_layer "$oci" "$root" --owner=0 --group=0)"
    jq -c --arg tag "$(of .version)" '.manifests[0].annotations = {"org.opencontainers.image.ref.name": $tag}' \
      "$oci/index.json" >"$oci/index.new"
    mv "$oci/index.new" "$oci/index.json"
  done < <(jq -c '.images[]' <<<"$app")
  while read -r program; do
    program "$(jq -r .package <<<"$program")" "$bundle/bin/$(jq -r .name <<<"$program")"
  done < <(jq -c '.programs[]?' <<<"$app")
  chmod -R u=rwX,go=rX "$bundle"
  rm -rf "$out/source" "$out/root"
  touch "$out/done"
  phase "$name $(of .version) is there, $(du -sh "$bundle" | cut -f1); its manifest has the SHA-256 $(sha256sum <"$bundle/manifest.yaml" | cut -d' ' -f1)"
fi
echo "$bundle"
