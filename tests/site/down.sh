#!/bin/bash
# Ends the site: every node's PID 1 stops its daemons in order and takes its PID
# namespace with it; then networks and cgroups go. Files stay for the next
# up.sh (--wipe removes them too). Idempotent.
#
#   down.sh [--wipe]
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/../../images/lib.sh"

mkdir -p "$SITE_DIR/run"
if [ "${1:-}" != --locked ]; then
  exec 8>"$SITE_DIR/run/lock"
  flock 8
fi

# Users' programs run in all nodes: all are told at once, then awaited.
declare -A pids=()
for n in c1 c2 login; do
  p=$(node_pid "$n") || continue
  pids[$n]=$p
done
stop() {
  local n
  for n in "$@"; do [ -z "${pids[$n]:-}" ] || kill -TERM "${pids[$n]}"; done
  for n in "$@"; do
    [ -n "${pids[$n]:-}" ] || continue
    gone() { ! is_node "${pids[$n]}" "$n"; }
    within 20 gone || { phase "node $n does not stop: killed"; kill -KILL "${pids[$n]}"; within 10 gone; }
    rm -f "$SITE_DIR/run/$n.pid"
  done
}
stop c1 c2
stop login

for n in login c1 c2 sw; do
  [ ! -e "/run/netns/$TAG-$n" ] || ip netns del "$TAG-$n"
done
empty_cgroups() {
  local c n left=0
  for c in $CGROUPS; do
    for n in $NODES; do
      find "/sys/fs/cgroup/$c" -depth -type d -path "*/$TAG-$n*" -exec rmdir {} + 2>/dev/null
    done
  done
  find /sys/fs/cgroup -maxdepth 8 -type d -name "$TAG-*" 2>/dev/null | grep -q . && left=1
  return $left
}
within 5 empty_cgroups || phase "some cgroups of the site are still in use"
if [ "${1:-}" = --wipe ]; then
  rm -rf "${SITE_DIR:?}"/*
fi
phase "site is down"
