#!/bin/bash
# How long until a claim is Bound, and until a hundred are: see measure.py. The site must be up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
install -m 755 "$here/../apiserver.py" "$SITE_DIR/shared/apiserver.py"
install -m 755 "$here/measure.py" "$SITE_DIR/shared/measure-claims.py"
exec "$here/../../tests/site/sx" login -u alice python3 /site/measure-claims.py "$@"
