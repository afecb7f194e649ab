#!/bin/bash
# Ranks of a pod beside those of plain srun and of `srun apptainer exec`, the same
# binary on the same nodes in turns: see measure.py. The site must be up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
export SITE_DIR
exec python3 "$here/measure.py" "$here/../../tests/site/sx" "$here/ping-pong.c" "$@"
