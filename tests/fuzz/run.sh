#!/bin/bash
# Fuzzes each target for a while, from its seeds and from what earlier runs have found.
#
#   run.sh [SECONDS [TARGET...]]     default: 60 s each of all (below)
#
# Corpora are kept in $HPK_CACHE/fuzz/TARGET, without what adds nothing; what breaks a target is written beside, and the run fails.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HPK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hpk}/fuzz
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(plan control wire step flags reference layer link dns overlay)
triple=x86_64-unknown-linux-gnu
# What cargo-fuzz gives with `--sanitizer none`. With a target of its own, build scripts stay as they are.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache}/fuzz
cargo build --quiet --locked --release --target $triple --manifest-path "$here/Cargo.toml"
# The one that unpacks makes a folder the root of a thread.
root=()
[ "$(id -u)" = 0 ] || root=(unshare -r)
for target in "${targets[@]}"; do
  corpus=$cache/$target
  mkdir -p "$corpus"
  echo "fuzzing $target for $seconds s"
  log=$cache/$target.log
  if ! "${root[@]}" "$CARGO_TARGET_DIR/$triple/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -max_len=8192 -dict="$here/json.dict" -artifact_prefix="$cache/$target-" "$corpus" "$here/seeds/$target" >"$log" 2>&1; then
    grep -E "panicked|ERROR|Test unit" -A2 "$log"
    echo "$target is broken by the input above; all of it: $log"
    exit 1
  fi
  grep DONE "$log"
  smaller=$(mktemp -d "$cache/$target.XXXX")
  if "${root[@]}" "$CARGO_TARGET_DIR/$triple/release/$target" -merge=1 -max_len=8192 "$smaller" "$corpus" >>"$log" 2>&1; then
    rm -r "$corpus" && mv "$smaller" "$corpus"
  else
    rm -r "$smaller"
  fi
done
