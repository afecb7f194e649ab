#!/bin/bash
# Many trivial pods at once, from the Job's creation to its completion: time, the
# kubelet's memory and CPU, and requests to slurmctld, for growing numbers.
#
#   PODS="100 200 400" run.sh      on a site that is up
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
folder=$SITE_DIR/home/alice/bench-many
mkdir -p "$folder"
cp "$here/measure.py" "$folder/"
chown -R 1000:1000 "$folder"
# shellcheck disable=SC2086  # a list of numbers
"$here/../../tests/site/sx" login -u alice python3 bench-many/measure.py ${PODS:-100 200 400}
rm -rf "$folder"
