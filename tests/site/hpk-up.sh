#!/bin/bash
# Starts HPK as alice on the login node and waits until its node is Ready.
# Restarts it if install.sh brought other programs since it was started.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/../../images/lib.sh"
alice() { "$here/sx" login -u alice "$@"; }

if [ -e "$SITE_DIR/run/hpk-changed" ] && [ -e "$SITE_DIR/home/alice/.hpk" ]; then
  phase "hpk down: its programs changed"
  alice hpk down
fi
phase "hpk up, as alice"
# Said, because a site whose cluster was made before there was a choice would stay with IPv4; and sizes of logs that are
# not the default, for a case that sees them; and a Node for one more of Slurm's partitions.
executor=(--executor slurm --partitions debug)
# More CPUs than there are, as the site's nodes claim: cases ask for whole ones.
[ -z "$WITHOUT_SLURM" ] || executor=(--executor local --cluster-name site --local-cpus 64)
alice hpk up "${executor[@]}" --ip-families dual --container-log-max-size 8Mi --container-log-max-files 8
rm -f "$SITE_DIR/run/hpk-changed"
alice kubectl wait --for=create node/hpk-site --timeout=60s >/dev/null
alice kubectl wait --for=condition=Ready node/hpk-site --timeout=60s >/dev/null
phase "node hpk-site is Ready"
