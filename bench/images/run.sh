#!/bin/bash
# An image as one SquashFS file beside the same as a folder: how long it takes to come, what it takes, and how long until a pod
# of it runs. See measure.py. The site must be up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
install -m 755 "$here/../apiserver.py" "$SITE_DIR/shared/apiserver.py"
install -m 755 "$here/measure.py" "$SITE_DIR/shared/measure-images.py"
install -m 755 "$here/../start/measure.py" "$SITE_DIR/shared/measure_start.py"
exec "$here/../../tests/site/sx" login -u alice python3 /site/measure-images.py "$@"
