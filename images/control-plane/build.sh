#!/bin/bash
# Makes the control plane's product and prints its folder as the last line:
#
#   bin/                 kube-apiserver, kube-controller-manager, kube-scheduler,
#                        kubectl, etcd, etcdutl, coredns (made by programs.sh)
#   control-plane.sqfs   the same but kubectl, in one image for Apptainer: a bare
#                        SquashFS, the same to the byte whenever it is made
#
#   build.sh [--kubernetes-bin DIR]    (the option is programs.sh's)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"

bin=$("$here/programs.sh" "$@")
out=$(dirname "$bin")
# A comment's change in this file packs once more; that takes half a minute.
recipe=$(key_of "$here/build.sh")
locked "$out"
image=$out/control-plane.sqfs
if [ "$(cat "$image.recipe" 2>/dev/null)" != "$recipe" ]; then
  need mksquashfs squashfs-tools
  phase "packing control-plane.sqfs"
  tree=$out/tree
  rm -rf "$tree" "$image.new"
  # Mount points for what Apptainer brings, and users: etcd asks who it is.
  mkdir -p "$tree"/{bin,etc,dev,proc,sys,tmp,home,root,run,var/tmp,usr}
  for p in etcd etcdutl kube-apiserver kube-controller-manager kube-scheduler coredns; do
    ln "$bin/$p" "$tree/bin/$p" 2>/dev/null || cp "$bin/$p" "$tree/bin/$p"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
  echo 'root:x:0:' >"$tree/etc/group"
  touch "$tree"/etc/{hosts,resolv.conf,localtime}
  chmod -R u=rwX,go=rX "$tree"
  # lz4: several programs page in at once through one squashfuse each, and a
  # start is bound by decompression (docs/adr/0005-control-plane-image.md).
  # Times are said here; mksquashfs does not take them from two places.
  env -u SOURCE_DATE_EPOCH nice mksquashfs "$tree" "$image.new" -quiet -no-progress -noappend -comp lz4 -Xhc -b 131072 \
    -all-root -all-time 0 -mkfs-time 0 >"$out/pack.log" 2>&1 ||
    { tail -n 20 "$out/pack.log" >&2; die "packing failed, its log is $out/pack.log"; }
  rm -rf "$tree"
  mv "$image.new" "$image"
  echo "$recipe" >"$image.recipe"
  phase "control-plane.sqfs is there, $(($(stat -c %s "$image") / 1000000)) MB"
fi
echo "$out"
