#!/bin/bash
# Builds the bundle of an application (images/apps/build.sh) and lays it where the site's nodes see it, as /site/apps/<bundle>.
#
#   apps.sh NAME          the site must be up
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../images/lib.sh"
. "$here/site/common.sh"
bundle=$("$here/../images/apps/build.sh" "${1:?usage: apps.sh NAME}" | tail -n 1)
[ -n "$(node_pid login)" ] || die "the site in $SITE_DIR is not up: make site-up, with the same SITE_DIR"
to=$SITE_DIR/shared/apps
mkdir -p "$to"
rm -rf "$to/$1"-*
cp -a --reflink=auto "$bundle" "$to/"
echo "$to/$(basename "$bundle")"
