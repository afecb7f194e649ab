#!/bin/bash
# Makes the project's images where absent and pushes those that the site's
# registry (login:5000) does not hold yet: busybox:1, toolbox:1 and mpi:1.
#
#   push.sh            the site must be up (tests/site/up.sh calls this)
#   push.sh postgres   another image of this folder
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"
. "$here/../tests/site/common.sh"
sx=$here/../tests/site/sx

"$sx" login sh -c 'for i in $(seq 100); do curl -sf localhost:5000/v2/ >/dev/null && exit; sleep 0.1; done; exit 1' \
  || die "the registry on the login node does not answer: $SITE_DIR/nodes/login/fs/var/log/registry.log"
[ $# -gt 0 ] || set -- busybox toolbox mpi
for image; do
  oci=$("$here/$image/build.sh")
  mark=$SITE_DIR/shared/registry/.pushed-$image
  [ "$(cat "$mark" 2>/dev/null)" = "$oci" ] && continue
  phase "pushing $image:1 to login:5000"
  # The login node reads the layout in the site's shared folder.
  rm -rf "$SITE_DIR/shared/push"
  cp -a --reflink=auto "$oci" "$SITE_DIR/shared/push"
  "$sx" login skopeo copy -q --insecure-policy --dest-tls-verify=false oci:/site/push "docker://login:5000/$image:1"
  rm -rf "$SITE_DIR/shared/push"
  echo "$oci" >"$mark"
done
