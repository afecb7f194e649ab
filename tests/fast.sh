#!/bin/bash
# The end-to-end cases that are not about Slurm, on one machine with the local
# executor: in the nodes' root filesystem, where Apptainer is, as its user alice;
# no daemon of Slurm's runs. `make fast` calls this.
#
#   fast.sh [ARGUMENTS OF CARGO TEST...]      such as --test logs, or -- NAME
#
# The machine stays up for the next round; SITE_DIR says where its files are.
# tests/site/down.sh ends it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../images/lib.sh"

if [ "$(id -u)" != 0 ]; then
  phase "LEFT OUT, for want of root: the end-to-end cases, which run in a root filesystem of their own"
  exit
fi
"$here/site/up.sh" --without-slurm
"$here/site/install.sh"
"$here/site/hpk-up.sh"
install -D -m 755 "$("$here/kubectl-older/build.sh" | tail -n 1)" "$SITE_DIR/home/alice/.local/bin/kubectl-older"
phase "end-to-end cases without Slurm"
log=$SITE_DIR/run/cases.log
export RUST_TEST_THREADS=${E2E_THREADS:-6}
cargo test --locked -p hpk-e2e --no-default-features --no-fail-fast "$@" 2>&1 | tee "$log" |
  grep -vE '^running |^test .* ok$|^$|^ +(Running|Doc-tests|Finished|Compiling)' || true
awk '/^test .* \.\.\. ok$/ {ok++} /^test .* FAILED$/ {failed++; names = names " " $2}
     /^test .* \.\.\. ignored/ {left++}
     END {printf "%d cases ran well, %d failed%s, %d were left out (about Slurm, several nodes, or long)\n", ok, failed, names, left
          exit !(ok > 0 && failed == 0)}' "$log" || { phase "failed; all that was said: $log"; exit 1; }
phase "which ran and which were left out: $log"
