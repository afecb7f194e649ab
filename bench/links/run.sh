#!/bin/bash
# The kubelet's end of 2,000 idle links, each with mutual TLS and the keep-alive of production: memory, CPU time over a
# minute. And how fast a link carries what a supervisor's socket gives.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# Two ends in two processes.
[ "$(ulimit -n)" -ge 4096 ] || ulimit -n 4096
cargo build --quiet --release -p hpk-link --example links >&2
echo "## Links (\`links\`)"
echo
echo "| | ours | goal | |"
echo "|---|---|---|---|"
"${CARGO_TARGET_DIR:-target}/release/examples/links" "${1:-2000}" "${2:-60}"
