#!/bin/bash
# Brings what links programs against an old glibc: zig, from the wheel of PyPI,
# and cargo-zigbuild. Prints two lines: zig's path, cargo-zigbuild's path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"

out=$HPK_CACHE/tools/zig-$(key_of "$here/zig.sh")
locked "$out"
if [ ! -e "$out/done" ]; then
  phase "bringing zig and cargo-zigbuild"
  command -v python3 >/dev/null || die "python3 is missing: apt-get install python3 python3-venv"
  python3 -m venv "$out/venv" >&2 || die "python3 makes no venv: apt-get install python3-venv"
  # The one file that is known to work, wherever it comes from.
  echo 'ziglang==0.13.0 --hash=sha256:3ce0c9f16547e5d61b32e0d226926e9a2552ef4b91fccf7ab5ea1a623a77824b' >"$out/pinned.txt"
  "$out/venv/bin/pip" --quiet install --require-hashes --only-binary :all: -r "$out/pinned.txt" >&2
  CARGO_TARGET_DIR=$out/target nice cargo install --quiet --locked --root "$out" cargo-zigbuild@0.24.1 >&2
  rm -rf "$out/target"
  touch "$out/done"
fi
"$out/venv/bin/python" -c 'import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))'
echo "$out/bin/cargo-zigbuild"
