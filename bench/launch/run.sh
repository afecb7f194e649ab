#!/bin/bash
# Launch, join and reaping by the supervisor's system calls, beside crun and tini
# in the same run, in a user namespace as a pod has it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
need crun crun
need tini tini
need busybox busybox-static
need newuidmap uidmap
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HPK_CACHE/cargo-target}
cd "$here/../.."
program=$(cargo bench -q -p hpk-sys --bench launch --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*launch-[^"]*\)".*/\1/p' | tail -n 1)
[ -x "$program" ] || die "cargo made no benchmark program"

work=$(mktemp -d /var/tmp/hpk-launch.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/rootfs/bin" "$work/scratch" "$work/crun"
cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
for applet in sh true sleep; do ln -s busybox "$work/rootfs/bin/$applet"; done
# Reached by whoever runs the measurement.
cp "$program" "$work/launch"
chmod -R a+rX "$work"

phase "launch, join, reaping"
# Mount, PID and IPC namespaces of its own, as the supervisor finds them in a job.
unshare -m -i -p -f --mount-proc "$work/launch" "$work/rootfs" "$work/scratch" >"$work/times"

phase "crun"
ln -s ../rootfs "$work/crun/rootfs"
(cd "$work/crun" && crun spec)
sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"true"/' "$work/crun/config.json"
# cgroups and terminal off: only what a launch needs.
cat >"$work/crun.sh" <<'X'
cd "$1"
for i in $(seq 60); do
  start=$(date +%s%N)
  crun --cgroup-manager=disabled run "bench-$$-$i" </dev/null
  echo $((($(date +%s%N) - start) / 1000))
done | sort -n | sed -n 30p
X
crun_run=$(bash "$work/crun.sh" "$work/crun" 2>"$work/crun.err") || crun_run=
clock=$(for _ in $(seq 60); do s=$(date +%s%N); /bin/true; echo $((($(date +%s%N) - s) / 1000)); done | sort -n | sed -n 30p)

of() { sed -n "s/^$1 //p" "$work/times"; }
ms() { awk -v us="$1" 'BEGIN { if (us == "") print "-"; else printf "%.2f ms", us / 1000 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (a == "" || b == "" || b == 0) print "-"; else printf "%.2f", a / b }'; }
cat <<X
## Launch, join, reaping

Medians (best in brackets). Load at the end: $(cut -d' ' -f1-3 /proc/loadavg) on $(nproc) CPUs.

| what | ours | beside | ratio |
|---|---|---|---|
| container of \`true\`, request to end | $(ms "$(of launch)") ($(ms "$(of launch-best)")) | \`crun run\` $(ms "$crun_run"), of it $(ms "$clock") the shell's | $(ratio "$(of launch)" "$crun_run") |
| the same in the pod's PID namespace | $(ms "$(of launch-shared-pid)") ($(ms "$(of launch-shared-pid-best)")) | | |
| the same with 50 volumes (CPU time $(ms "$(of launch-50-volumes-cpu)")) | $(ms "$(of launch-50-volumes)") ($(ms "$(of launch-50-volumes-best)")) | without $(ms "$(of launch)") | $(ratio "$(of launch-50-volumes)" "$(of launch)") |
| its CPU time, all processes | $(ms "$(of launch-cpu)") | of a plain spawn $(ms "$(of spawn-cpu)") | |
| request to exec | $(ms "$(of launch-until-exec)") ($(ms "$(of launch-until-exec-best)")) | | |
| \`true\` in a running container | $(ms "$(of join)") ($(ms "$(of join-best)")) | a plain spawn of it $(ms "$(of spawn)") | $(ratio "$(of join)" "$(of spawn)") |
| 20,000 orphans' zombies drained | $(ms "$(of drain)") ($(ms "$(of drain-best)")) | tini $(ms "$(of drain-tini)") ($(ms "$(of drain-tini-best)")) | $(ratio "$(of drain)" "$(of drain-tini)") |
X
