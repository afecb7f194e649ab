#!/bin/bash
# Installs HPK for alice, as an ordinary user would: below ~/.local, nothing
# elsewhere. Files that did not change are left alone; if a program changed, the
# file run/hpk-changed of the site tells hpk-up.sh to restart it.
#
#   install.sh         from CARGO_TARGET_DIR (PROFILE, default release) and the
#                      control plane's product
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/../../images/lib.sh"

profile=${PROFILE:-release}
[ "$profile" = dev ] && profile=debug
target=${CARGO_TARGET_DIR:-$HPK_CACHE/cargo-target}
static=$target/x86_64-unknown-linux-gnu/$profile
control_plane=$("$here/../../images/control-plane/build.sh" ${KUBERNETES_BIN:+--kubernetes-bin "$KUBERNETES_BIN"} | tail -n 1)
home=$SITE_DIR/home/alice
prefix=$home/.local
[ -d "$home" ] || die "no home of alice in $SITE_DIR: run tests/site/up.sh first"

changed=
# put SOURCE DESTINATION MODE: by rename, so that a running program is not hurt.
put() {
  [ -e "$1" ] || die "$1 is missing: run make build"
  mkdir -p "$(dirname "$2")"
  cmp -s "$1" "$2" && return
  cp --reflink=auto "$1" "$2.new"
  chmod "$3" "$2.new"
  mv "$2.new" "$2"
  changed+=" $(basename "$2")"
}
put "$target/$profile/hpk" "$prefix/bin/hpk" 755
put "$target/$profile/hpk-kubelet" "$prefix/bin/hpk-kubelet" 755
put "$control_plane/bin/kubectl" "$prefix/bin/kubectl" 755
put "$static/hpk-pause" "$prefix/libexec/hpk/hpk-pause" 755
put "$static/hpk-netns" "$prefix/libexec/hpk/hpk-netns" 755
put "$control_plane/control-plane.sif" "$prefix/share/hpk/control-plane.sif" 644
if ! cmp -s "$static/hpk-pause" "$prefix/share/hpk/pause/hpk-pause"; then
  "$here/../../images/pause/build.sh" "$static/hpk-pause" "$prefix/share/hpk/pause"
fi
chown -R 1000:1000 "$prefix"
if [ -n "$changed" ]; then
  echo "$changed" >"$SITE_DIR/run/hpk-changed"
  phase "installed in ~alice/.local:$changed"
fi
