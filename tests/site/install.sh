#!/bin/bash
# Installs HPK for alice, as an ordinary user would: below ~/.local, nothing
# elsewhere. If a program changed, the file run/hpk-changed of the site tells
# hpk-up.sh to restart it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/../../images/lib.sh"

home=$SITE_DIR/home/alice
[ -d "$home" ] || die "no home of alice in $SITE_DIR: run tests/site/up.sh first"

changed=$("$here/../../images/install.sh" "$home/.local" | xargs)
chown -R 1000:1000 "$home/.local"
if [ -n "$changed" ]; then
  echo "$changed" >"$SITE_DIR/run/hpk-changed"
  phase "installed in ~alice/.local: $changed"
fi
