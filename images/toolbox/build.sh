#!/bin/bash
# toolbox:1, Debian 13 with the tools that examples, tests and measurements use:
# bash, coreutils, python3, curl, iperf3, dig, Open MPI and mpi-ring. Two layers:
# Debian, and what the tools add. Prints the OCI layout's folder as its last
# line; needs root.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
. "$here/../oci.sh"

out=$HPK_CACHE/image-toolbox-$(key_of "$here"/{build.sh,packages,mpi-ring.c} "$here"/../{oci.sh,debian/build.sh})
locked "$out"
if [ ! -e "$out/done" ]; then
  base=$("$here/../debian/build.sh")
  phase "image toolbox:1"
  rm -rf "$out/oci" "$out/built" "$out/tools"
  mkdir -p "$out/oci/blobs/sha256" "$out/built" "$out/tools"
  # The MPI program is compiled in a copy that the image never sees.
  cp "$here/mpi-ring.c" "$out/built/"
  in_copy "$base" "$out/built" sh -c \
    'apt-get install -qy --no-install-recommends gcc libc6-dev libopenmpi-dev &&
     mpicc -O2 -Wall -o /product/mpi-ring /product/mpi-ring.c' \
    >"$out/log" 2>&1 || { tail -n 20 "$out/log" >&2; die "mpi-ring does not build, the log is $out/log"; }
  # shellcheck disable=SC2046
  changes_of "$base" "$out/tools" sh -c \
    'apt-get install -qy --no-install-recommends "$@" && apt-get clean' -- $(cat "$here/packages") \
    >>"$out/log" 2>&1 || { tail -n 20 "$out/log" >&2; die "apt-get install failed, the log is $out/log"; }
  install -D -m 755 "$out/built/mpi-ring" "$out/tools/usr/local/bin/mpi-ring"
  lean=(--exclude=dev/* --exclude=var/lib/apt/lists/* --exclude=var/cache/apt/* --exclude=var/log/*
    --exclude=usr/sbin/policy-rc.d --exclude=etc/resolv.conf --exclude=etc/apt/apt.conf.d/*[Pp]roxy*)
  debian=$(oci_layer "$out/oci" "$base" "${lean[@]}")
  tools=$(oci_layer "$out/oci" "$out/tools" "${lean[@]}")
  # With two families in a pod Open MPI 5 finds no way between its own interfaces.
  oci_image "$out/oci" \
    '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","LANG=C.UTF-8",
      "OMPI_MCA_btl_tcp_disable_family=6"],"Cmd":["bash"]}' \
    "$debian" "$tools"
  rm -rf "$out/built" "$out/tools"
  touch "$out/done"
  phase "toolbox:1 is there, $(du -sh "$out/oci" | cut -f1)"
fi
echo "$out/oci"
