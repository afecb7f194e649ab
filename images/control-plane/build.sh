#!/bin/bash
# Makes the control plane's product and prints its folder as the last line:
#
#   bin/                 kube-apiserver, kube-controller-manager, kube-scheduler,
#                        kubectl, etcd, coredns (made by programs.sh)
#   control-plane.sif    the same but kubectl, in one Apptainer image
#
#   build.sh [--kubernetes-bin DIR]    (the option is programs.sh's)
#
# Packing needs Apptainer: this machine's, or else the one in the test site's
# root filesystem (tests/site/rootfs.sh, which needs root).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"

bin=$("$here/programs.sh" "$@")
out=$(dirname "$bin")
# A comment's change in this file packs once more; that takes half a minute.
recipe=$(key_of "$here/build.sh")
locked "$out"
if [ "$(cat "$out/control-plane.sif.recipe" 2>/dev/null)" != "$recipe" ]; then
  phase "packing control-plane.sif"
  tree=$out/tree
  rm -rf "$tree" "$out/control-plane.sif.new"
  # Mount points for what Apptainer brings, and users: etcd asks who it is.
  mkdir -p "$tree"/{bin,etc,dev,proc,sys,tmp,home,root,run,var/tmp,usr}
  for p in etcd kube-apiserver kube-controller-manager kube-scheduler coredns; do
    ln "$bin/$p" "$tree/bin/$p" 2>/dev/null || cp "$bin/$p" "$tree/bin/$p"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
  echo 'root:x:0:' >"$tree/etc/group"
  touch "$tree"/etc/{hosts,resolv.conf,localtime}
  # lz4: several programs page in at once through one squashfuse each, and a
  # start is bound by decompression (docs/adr/0005-control-plane-image.md).
  args=(build --mksquashfs-args '-comp lz4 -Xhc -b 131072' control-plane.sif.new tree)
  if command -v apptainer >/dev/null; then
    (cd "$out" && apptainer "${args[@]}") >"$out/pack.log" 2>&1
  else
    root=$("$here/../../tests/site/rootfs.sh")
    # shellcheck disable=SC2016
    unshare --mount --pid --fork sh -c '
      root=$1 out=$2; shift 2
      mount -t proc proc "$root/proc"
      mount -t tmpfs tmpfs "$root/tmp"
      mount --bind "$out" "$root/mnt"
      exec nice chroot "$root" sh -c '\''cd /mnt; exec apptainer "$@"'\'' -- "$@"' \
      -- "$root" "$out" "${args[@]}" >"$out/pack.log" 2>&1
  fi || { tail -n 20 "$out/pack.log" >&2; die "packing failed, its log is $out/pack.log"; }
  rm -rf "$tree"
  mv "$out/control-plane.sif.new" "$out/control-plane.sif"
  echo "$recipe" >"$out/control-plane.sif.recipe"
  phase "control-plane.sif is there, $(($(stat -c %s "$out/control-plane.sif") / 1000000)) MB"
fi
echo "$out"
