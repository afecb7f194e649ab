#!/bin/bash
# postgres:1, Debian 13 with Debian's PostgreSQL, for the case of a database on
# a claim. Prints the OCI layout's folder as its last line; needs root.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
. "$here/../oci.sh"

out=$HPK_CACHE/image-postgres-$(key_of "$here"/build.sh "$here"/../{oci.sh,debian/build.sh})
locked "$out"
if [ ! -e "$out/done" ]; then
  base=$("$here/../debian/build.sh")
  phase "image postgres:1"
  rm -rf "$out/oci" "$out/tools"
  mkdir -p "$out/oci/blobs/sha256" "$out/tools"
  # No cluster of Debian's own: the case makes one on its claim.
  changes_of "$base" "$out/tools" sh -c '
    mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    apt-get install -qy --no-install-recommends postgresql && apt-get clean
    ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/' \
    >"$out/log" 2>&1 || { tail -n 20 "$out/log" >&2; die "apt-get install failed, the log is $out/log"; }
  lean=(--exclude=dev/* --exclude=var/lib/apt/lists/* --exclude=var/cache/apt/* --exclude=var/log/*
    --exclude=usr/sbin/policy-rc.d --exclude=etc/resolv.conf --exclude=etc/apt/apt.conf.d/*[Pp]roxy*)
  debian=$(oci_layer "$out/oci" "$base" "${lean[@]}")
  tools=$(oci_layer "$out/oci" "$out/tools" "${lean[@]}")
  oci_image "$out/oci" \
    '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","LANG=C.UTF-8","PGHOST=/tmp"],"User":"postgres",
      "Cmd":["bash"]}' \
    "$debian" "$tools"
  rm -rf "$out/tools"
  touch "$out/done"
  phase "postgres:1 is there, $(du -sh "$out/oci" | cut -f1)"
fi
echo "$out/oci"
