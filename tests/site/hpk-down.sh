#!/bin/bash
# Ends HPK's programs on the login node, if the site is up and HPK is installed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/../../images/lib.sh"

node_pid login >/dev/null || exit 0
[ -x "$SITE_DIR/home/alice/.local/bin/hpk" ] || exit 0
phase "hpk down"
"$here/sx" login -u alice hpk down
