#!/bin/bash
# Makes the one file that a site needs, and prints its path as the last line:
#
#   hpk-<version>-x86_64.tar.zst    install.sh, all programs, the control plane,
#                                   images, completions, man pages, licences, an SBOM
#   ….sha256                        its SHA-256 sum
#   ….minisig                       its signature, where HPK_SIGN_KEY names a
#                                   minisign key (docs/guide/release.md)
#
#   build.sh [OUT]    OUT: where the files go (default $HPK_CACHE/dist)
#
# hpk and hpk-kubelet are linked against glibc 2.17, hpk-pause and hpk-netns are
# static. The file is the same to the byte whenever and wherever it is made from
# one commit with one tool chain: no path, time or user of this machine is in it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
top=$(cd "$here/../.." && pwd)
out=${1:-$HPK_CACHE/dist}
mkdir -p "$out"
out=$(realpath "$out")
cd "$top"

need zstd zstd
profile=${PROFILE:-release}
folder=$profile
[ "$profile" = dev ] && folder=debug
version=$(cargo metadata --no-deps --format-version 1 --locked |
  python3 -c 'import json, sys; print(next(p["version"] for p in json.load(sys.stdin)["packages"] if p["name"] == "hpk"))')
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH

mapfile -t zig < <("$here/zig.sh")
control_plane=$(images/control-plane/build.sh ${KUBERNETES_BIN:+--kubernetes-bin "$KUBERNETES_BIN"} | tail -n 1)

# Target folders of their own: other flags than every day's would build each other's work away.
targets=${CARGO_TARGET_DIR:-$HPK_CACHE/cargo-target}/dist
triple=x86_64-unknown-linux-gnu
# Messages of panics name source files: by paths that every machine has.
remap="--remap-path-prefix=$top=/hpk --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
phase "building hpk and hpk-kubelet for glibc 2.17 ($profile)"
CARGO_TARGET_DIR=$targets/glibc CARGO_ZIGBUILD_ZIG_PATH=${zig[0]} RUSTFLAGS=$remap \
  nice "${zig[1]}" zigbuild --quiet --locked --profile "$profile" -p hpk -p hpk-kubelet --target $triple.2.17
phase "building hpk-pause and hpk-netns (static)"
CARGO_TARGET_DIR=$targets/static RUSTFLAGS="$remap -C target-feature=+crt-static" \
  nice cargo build --quiet --locked --profile "$profile" -p hpk-pause -p hpk-netns --target $triple

work=$out/work
rm -rf "$work"
name=hpk-$version-x86_64
tree=$work/$name
mkdir -p "$work/programs" "$tree/root"
cp "$targets/glibc/$triple/$folder"/{hpk,hpk-kubelet} "$targets/static/$triple/$folder"/{hpk-pause,hpk-netns} "$work/programs/"
strip "$work/programs"/*
"$here/glibc.sh" 2.17 "$work/programs/hpk" "$work/programs/hpk-kubelet"

phase "putting the tree together"
HPK_PROGRAMS=$work/programs "$here/../install.sh" "$tree/root" >/dev/null
busybox=$("$here/../busybox/build.sh" | tail -n 1)
mkdir -p "$tree/root/share/hpk/images"
cp -r "$busybox" "$tree/root/share/hpk/images/busybox"
"$here/parts.py" "$control_plane/bin" "$tree/root/share/hpk/licences" >"$tree/root/share/hpk/sbom.cdx.json"
cp LICENSE "$tree/root/share/hpk/licences/HPK"
cp -r docs/guide "$tree/root/share/hpk/guide"
cp "$here/install.sh" "$tree/install.sh"
chmod -R u=rwX,go=rX "$tree"
chmod 755 "$tree/install.sh"
(cd "$tree/root" && find . -type f ! -path ./share/hpk/installed -printf '%P\n' | LC_ALL=C sort >"$work/installed")
mv "$work/installed" "$tree/root/share/hpk/installed"
(cd "$tree" && find root -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >SHA256SUMS)

phase "packing $name.tar.zst"
# The control plane is compressed already: a high level costs time and brings nothing.
tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
  --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -cf - "$name" |
  nice zstd -q -f -T1 -9 -o "$out/$name.tar.zst"
rm -rf "$work"
cd "$out"
sha256sum "$name.tar.zst" >"$name.tar.zst.sha256"
if [ -n "${HPK_SIGN_KEY:-}" ]; then
  need minisign minisign
  minisign -S -s "$HPK_SIGN_KEY" -m "$name.tar.zst" -t "$name" >/dev/null
else
  rm -f "$name.tar.zst.minisig"
  phase "not signed: HPK_SIGN_KEY names no minisign key"
fi
phase "$name.tar.zst is there, $(($(stat -c %s "$name.tar.zst") / 1000000)) MB"
echo "$out/$name.tar.zst"
