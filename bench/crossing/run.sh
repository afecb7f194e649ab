#!/bin/bash
# What calls cost a process in the node's network, in a hostNetwork pod, where
# connections ask first, and without a pod on the same node: see measure.py.
# The site must be up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
export SITE_DIR
exec python3 "$here/measure.py" "$here/../../tests/site/sx" "$@"
