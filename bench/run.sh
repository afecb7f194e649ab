#!/bin/bash
# Runs the measurements, each in a folder of its own with a run.sh that prints a
# Markdown section: ratios taken in one run, ours beside what it is held against.
#
#   run.sh [--write] [NAME...]     all of them if none is named
#
# --write puts the sections into RESULTS.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../images/lib.sh"
write=
if [ "${1:-}" = --write ]; then write=yes; shift; fi
[ $# -gt 0 ] || set -- $(cd "$here" && for r in */run.sh; do dirname "$r"; done)

out=$HPK_CACHE/bench
mkdir -p "$out"
failed=
for name; do
  [ -x "$here/$name/run.sh" ] || die "no measurement $name: there is no $here/$name/run.sh"
  phase "measuring $name"
  if "$here/$name/run.sh" >"$out/$name.new"; then
    mv "$out/$name.new" "$out/$name.md"
    cat "$out/$name.md"
  else
    failed+=" $name"
  fi
done
if [ -n "$write" ]; then
  {
    echo "# Measured"
    echo
    echo "By \`make bench\`, medians where not said otherwise. Compare the columns of one table: they come from one run."
    echo "Machine: $(nproc) CPUs ($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)), kernel $(uname -r), $(date -u +%F)."
    for section in "$out"/*.md; do
      echo
      cat "$section"
    done
  } >"$here/RESULTS.md"
fi
[ -z "$failed" ] || die "failed:$failed"
