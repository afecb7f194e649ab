#!/bin/bash
# What callers that do not say who they are can take of the kubelet's memory: see measure.py. The site must be up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../tests/site/common.sh"
sx=$here/../../tests/site/sx
install -m 755 "$here/measure.py" "$SITE_DIR/shared/measure-strangers.py"
api=$("$sx" login -u alice kubectl get nodes -o 'jsonpath={.items[0].status.daemonEndpoints.kubeletEndpoint.Port}')
link=$("$sx" login -u alice jq -r .link_addr /home/alice/.hpk/cluster.json)
pid=$("$sx" login pgrep -ox hpk-kubelet)
echo "## Strangers (\`strangers\`)"
echo
echo "1,500 connections of bob's at a time; the kubelet's resident memory, MiB."
echo
echo "| what they send | before | most | 20 s after |"
echo "|---|---|---|---|"
# The kubelet's memory is root's to see, the strangers are bob's.
for kind in nothing handshake header; do
  "$sx" login python3 /site/measure-strangers.py "$pid" "10.77.0.1:$api" "$kind"
done
for kind in nothing handshake; do
  "$sx" login python3 /site/measure-strangers.py "$pid" "$link" "$kind" link
done
