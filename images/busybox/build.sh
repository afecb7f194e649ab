#!/bin/bash
# busybox:1, Debian's busybox-static with a link for each applet. Prints the OCI
# layout's folder as its last line; needs root.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"
. "$here/../oci.sh"

out=$HPK_CACHE/image-busybox-$(key_of "$here/build.sh" "$here/../oci.sh" "$here/../debian/build.sh")
locked "$out"
if [ ! -e "$out/done" ]; then
  base=$("$here/../debian/build.sh")
  phase "image busybox:1"
  rm -rf "$out/root" "$out/oci" "$out/deb"
  mkdir -p "$out/root" "$out/oci/blobs/sha256" "$out/deb"
  # The package is fetched by the Debian tree's own apt, unpacked beside it.
  in_copy "$base" "$out/deb" sh -c 'cd /product && apt-get download -q busybox-static && dpkg-deb -x busybox-static*.deb tree' \
    >"$out/log" 2>&1 || { tail "$out/log" >&2; die "cannot fetch busybox-static"; }
  r=$out/root
  mkdir -p "$r"/{bin,dev,etc,home,proc,root,run,sys,tmp,usr/bin,usr/sbin,var/log,var/run,var/tmp,var/spool}
  ln -s bin "$r/sbin"
  chmod 1777 "$r/tmp" "$r/var/tmp"
  cp "$(find "$out/deb/tree" -type f -path "*bin/busybox")" "$r/bin/busybox"
  for a in $("$r/bin/busybox" --list); do [ -e "$r/bin/$a" ] || ln "$r/bin/busybox" "$r/bin/$a"; done
  ln -s ../../bin/env "$r/usr/bin/env"
  printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$r/etc/passwd"
  printf 'root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n' >"$r/etc/group"
  echo 'hosts: files dns' >"$r/etc/nsswitch.conf"
  layer=$(oci_layer "$out/oci" "$r")
  oci_image "$out/oci" '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]}' "$layer"
  rm -rf "$out/deb"
  touch "$out/done"
fi
echo "$out/oci"
