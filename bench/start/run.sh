#!/bin/bash
# How long until a pod's first instruction, beside plain sbatch and apptainer:
# see measure.py. The site must be up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
install -m 755 "$here/../apiserver.py" "$SITE_DIR/shared/apiserver.py"
install -m 755 "$here/measure.py" "$SITE_DIR/shared/measure-start.py"
exec "$here/../../tests/site/sx" login -u alice python3 /site/measure-start.py "$@"
