#!/bin/bash
# What a pod costs beside a plain batch job, on the site: see spine.py.
#
#   run.sh [--runs N] [PART...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
sx=$here/../../tests/site/sx
install -o 1000 -g 1000 -m 755 "$here/spine.py" "$SITE_DIR/home/alice/.spine.py"
exec "$sx" login -u alice python3 .spine.py "$@"
