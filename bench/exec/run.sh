#!/bin/bash
# `kubectl exec POD -- true` end to end, beside the same client and API server with a kubelet that answers at once: see
# measure.py. The site must be up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
install -m 755 "$here/measure.py" "$SITE_DIR/shared/measure-exec.py"
exec "$here/../../tests/site/sx" login -u alice python3 /site/measure-exec.py "$@"
