#!/bin/bash
# toolbox:1, Debian 13 with the tools that examples, tests and measurements use:
# bash, coreutils, python3, curl, iperf3, dig, Open MPI and mpi-ring. Two layers:
# Debian, and what the tools add. Prints the OCI layout's folder as its last
# line; needs root.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
. "$here/../oci.sh"
. "$here/../debian/image.sh"

out=$HPK_CACHE/image-toolbox-$(key_of "$here"/{build.sh,packages,mpi-ring.c} "$here"/../{oci.sh,debian/build.sh,debian/image.sh})
locked "$out"
if [ ! -e "$out/done" ]; then
  base=$("$here/../debian/build.sh")
  image_begin toolbox:1
  # The MPI program is compiled in a copy that the image never sees.
  cp "$here/mpi-ring.c" "$out/built/"
  in_copy "$base" "$out/built" sh -c \
    'apt-get install -qy --no-install-recommends gcc libc6-dev libopenmpi-dev &&
     mpicc -O2 -Wall -o /product/mpi-ring /product/mpi-ring.c' \
    >>"$out/log" 2>&1 || failed "mpi-ring does not build"
  mapfile -t packages <"$here/packages"
  image_packages "$base" "${packages[@]}"
  install -D -m 755 "$out/built/mpi-ring" "$out/tools/usr/local/bin/mpi-ring"
  # With two families in a pod Open MPI 5 finds no way between its own interfaces.
  image_end toolbox:1 "$base" \
    '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","LANG=C.UTF-8",
      "OMPI_MCA_btl_tcp_disable_family=6"],"Cmd":["bash"]}'
fi
echo "$out/oci"
