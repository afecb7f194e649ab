#!/bin/bash
# The control socket of a supervisor as a process: exec beside nsenter, streaming.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
busybox=$(command -v busybox || find "$HPK_CACHE"/image-busybox-*/root/bin/busybox | head -n 1)
cd "$here/../.."
target=x86_64-unknown-linux-gnu
cargo build --quiet --release -p hpk-pause --target $target \
  --config "target.$target.rustflags=[\"-C\",\"target-feature=+crt-static\"]" >&2
python3 "$here/measure.py" "${CARGO_TARGET_DIR:-target}/$target/release/hpk-pause" "$busybox"
