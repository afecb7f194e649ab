#!/bin/bash
# The supervisor's decisions (criterion) and the supervisor as a process, beside tini.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
command -v tini >/dev/null || die "tini is not installed: apt-get install tini"
busybox=$(command -v busybox || find "$HPK_CACHE"/image-busybox-*/root/bin/busybox | head -n 1)
cd "$here/../.."
target=x86_64-unknown-linux-gnu
cargo build --quiet --release -p hpk-pause --target $target \
  --config "target.$target.rustflags=[\"-C\",\"target-feature=+crt-static\"]" >&2
launch=$(cargo bench -q -p hpk-sys --bench launch --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*launch-[^"]*\)".*/\1/p' | tail -n 1)
python3 "$here/measure.py" "${CARGO_TARGET_DIR:-target}/$target/release/hpk-pause" "$busybox" "$launch"
echo
echo '```'
cargo bench --quiet -p hpk-core --bench step -- --noplot 2>/dev/null | grep -E "^step|time:|thrpt:"
echo '```'
