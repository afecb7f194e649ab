#!/bin/bash
# Measurements, each as a ratio of two things taken in turn in one run.
#
#   run.sh [NAME...]     all of bench/*/run.sh, or those named; `run.sh --list` tells the names
#
# Figures that were kept, with machine, commands and spread, are in RESULTS.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../images/lib.sh"
if [ "${1:-}" = --list ]; then
  for script in "$here"/*/run.sh; do basename "$(dirname "$script")"; done
  exit
fi
[ $# -gt 0 ] || set -- $("$here/run.sh" --list)
echo "machine: $(nproc) × $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), kernel $(uname -r)"
for name; do
  [ -x "$here/$name/run.sh" ] || die "no measurement $name (run.sh --list)"
  phase "$name"
  "$here/$name/run.sh"
done
