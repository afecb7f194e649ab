#!/bin/bash
# Runs the measurements, each in a folder of its own with a run.sh that prints a
# Markdown section: ratios taken in one run, ours beside what it is held against.
#
#   run.sh [--write] [NAME...]     all of them if none is named
#
# --write keeps the sections in results/<date>.md beside this script. RESULTS.md
# is written by hand: it compares, and says what the figures mean.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../images/lib.sh"
write=
if [ "${1:-}" = --write ]; then write=yes; shift; fi
if [ $# = 0 ]; then
  mapfile -t all < <(cd "$here" && dirname -- */run.sh)
  set -- "${all[@]}"
fi

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
  results=$here/results/$(date +%F).md
  mkdir -p "${results%/*}"
  [ -e "$results" ] || echo "# Measured on $(date +%F)" >"$results"
  {
    echo
    echo "By \`bench/run.sh\` at $(date +%R), version $(git -C "$here" describe --always --dirty 2>/dev/null || echo unknown)."
    echo "Medians where not said otherwise. Compare the columns of one table: they come from one run."
    echo "Machine: $(nproc) CPUs ($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)), kernel $(uname -r)."
    for name; do
      case " $failed " in *" $name "*) continue ;; esac
      echo
      cat "$out/$name.md"
    done
  } >>"$results"
  phase "written to $results"
fi
[ -z "$failed" ] || die "failed:$failed"
