#!/bin/bash
# The root filesystem of every node of the site: Debian 13 with Slurm, MariaDB,
# Apptainer and a container registry. Prints the folder as its last line; needs
# root.
#
#   rootfs.sh
#
# The product is $HPK_CACHE/rootfs-<key>/root. It is pristine: no user, host
# name, key or configuration of a site is in it, and nodes see it read-only.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"

out=$HPK_CACHE/rootfs-$(key_of "$here/rootfs.sh" "$here/packages" "$here/../../images/debian/build.sh")
locked "$out"
if [ ! -e "$out/done" ]; then
  base=$("$here/../../images/debian/build.sh")
  phase "root filesystem: $(wc -l <"$here/packages") packages and what they need"
  rm -rf "$out/root"
  cp -a --reflink=auto "$base" "$out/root"
  # shellcheck disable=SC2046
  in_tree "$out/root" apt-get install -qy --no-install-recommends $(cat "$here/packages") >"$out/log" 2>&1 \
    || { tail -n 20 "$out/log" >&2; die "apt-get install failed, its log is $out/log"; }
  in_tree "$out/root" apt-get clean
  # Mount points for what a node brings: its root is read-only.
  mkdir -p "$out/root/site" "$out/root/.old" "$out/root/var/lib/munge" "$out/root/var/spool/slurm" \
    "$out/root/var/lib/slurm" "$out/root/var/lib/mysql" "$out/root/var/lib/cni" "$out/root/var/lib/apptainer"
  rm -rf "$out/root/var/lib/mysql/"* "$out/root/etc/munge/munge.key" "$out/root/etc/hostname"
  touch "$out/done"
  phase "root filesystem is there, $(du -sh "$out/root" | cut -f1)"
fi
echo "$out/root"
