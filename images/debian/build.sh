#!/bin/bash
# A minimal Debian 13 tree, the ground of the site's root filesystem and of the
# toolbox image. Prints the folder as its last line; needs root.
#
#   build.sh
#
# The product is $HPK_CACHE/debian-<key>/root, made once: the key is the content
# of what decides it. Copy it (cp -a --reflink=auto), never write into it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"

out=$HPK_CACHE/debian-$(key_of "$here/build.sh")
locked "$out"
if [ ! -e "$out/done" ]; then
  need debootstrap debootstrap
  phase "debootstrap of Debian 13 from $(debian_mirror)"
  rm -rf "$out/root"
  debootstrap --variant=minbase --include=ca-certificates trixie "$out/root" "$(debian_mirror)" >"$out/log" 2>&1 \
    || { tail -n 20 "$out/log" >&2; die "debootstrap failed, its log is $out/log"; }
  apt_setup "$out/root"
  in_tree "$out/root" apt-get update -q >>"$out/log" 2>&1 || { tail -n 20 "$out/log" >&2; die "apt-get update failed"; }
  touch "$out/done"
  phase "Debian 13 is there, $(du -sh "$out/root" | cut -f1)"
fi
echo "$out/root"
