#!/bin/bash
# Container output into logs, beside conmon (Debian's package).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
command -v conmon >/dev/null || die "conmon is not installed: apt-get install conmon"
cd "$here/../.."
cargo build --quiet --release -p hpk-log --example pump --example lines --example floor >&2
bin=${CARGO_TARGET_DIR:-target}/release/examples
python3 "$here/measure.py" "$bin/pump" "$bin/lines" "$bin/floor"
