#!/bin/bash
# Memory on the compute node beside the containers' own processes, for a pod of
# one and of ten containers: everything of the job that is not a container.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sx=$here/../../tests/site/sx
k() { "$sx" login -u alice kubectl -n bench-memory "$@"; }

pod() { # pod NAME CONTAINERS
  echo "apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 1
  containers:"
  for i in $(seq "$2"); do
    echo "  - {name: c$i, image: 'login:5000/busybox:1', command: [sleep, '31415']}"
  done
}
"$sx" login -u alice kubectl delete namespace bench-memory --ignore-not-found >/dev/null
"$sx" login -u alice kubectl create namespace bench-memory >/dev/null
k wait --for=create serviceaccount/default --timeout=30s >/dev/null
echo "## Memory of a pod beside its containers' own processes"
echo
echo "| containers | process | number | RSS KiB | private KiB |"
echo "|---|---|---|---|---|"
for n in 1 10; do
  pod "p$n" "$n" | k apply -f - >/dev/null
  k wait --for=condition=Ready "pod/p$n" --timeout=60s >/dev/null
  read -r job node <<<"$("$sx" login -u alice squeue -h -n "bench-memory/p$n" -o '%i %N')"
  # slurmstepd is every job's, plain ones too: it is shown, not counted.
  "$sx" "$node" bash -c '
    job=$1 n=$2
    declare -A count rss private
    for p in $(scontrol listpids "$job" | awk "NR > 1 && \$1 > 0 {print \$1}") $(pgrep -f "slurmstepd: \[$job\."); do
      name=$(tr "\0" " " <"/proc/$p/cmdline" | cut -c1-200)
      case $name in "sleep 31415 "*) continue;; esac
      name=$(cat "/proc/$p/comm")
      set -- $(awk "/^Rss:/ {r = \$2} /^Private_(Clean|Dirty):/ {p += \$2} END {print r, p}" "/proc/$p/smaps_rollup")
      count[$name]=$((${count[$name]:-0} + 1)) rss[$name]=$((${rss[$name]:-0} + $1)) private[$name]=$((${private[$name]:-0} + $2))
    done
    r=0 p=0
    for name in "${!count[@]}"; do
      echo "| $n | $name | ${count[$name]} | ${rss[$name]} | ${private[$name]} |"
    done | sort
    for name in "${!count[@]}"; do [ "$name" = slurmstepd ] || { r=$((r + ${rss[$name]})); p=$((p + ${private[$name]})); }; done
    echo "| $n | **all but slurmstepd** | | **$r** | **$p** |"' -- "$job" "$n"
  k delete pod "p$n" --wait=false >/dev/null
done
"$sx" login -u alice kubectl delete namespace bench-memory --wait=false >/dev/null
