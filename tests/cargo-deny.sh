#!/bin/bash
# Builds cargo-deny, of a version that is known to work here, and prints its
# path as its last line. A machine's own cargo-deny is not asked: another
# version may know other rules.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../images/lib.sh"
out=$HPK_CACHE/tools/cargo-deny-$(key_of "$here/cargo-deny.sh")
locked "$out"
if [ ! -x "$out/bin/cargo-deny" ]; then
  phase "building cargo-deny"
  # A target folder of its own, and gone afterwards: it shares nothing with ours.
  CARGO_TARGET_DIR=$out/target nice cargo install --quiet --locked --root "$out" cargo-deny@0.20.2 >&2
  rm -rf "$out/target"
fi
echo "$out/bin/cargo-deny"
