#!/bin/bash
# Shows what HPK is, on the site that `make demo` brought up: applies examples,
# waits for their outcome, and shows what Kubernetes and Slurm say of them.
# Exits 0 only if each example did what it is there to show.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/site/common.sh"
. "$here/../images/lib.sh"

alice() { "$here/site/sx" login -u alice "$@"; }
k() { alice kubectl -n demo "$@"; }
# show CMD...: the command as alice would type it, and what it prints.
show() {
  printf '\n  alice@login$ %s\n' "$*"
  alice "$@" | sed 's/^/  /'
}
say() { printf '\n'; phase "$*"; }
apply() { k apply -f - <"$here/../images/examples/$1" >/dev/null; }
# expect WHAT KUBECTL-ARGUMENTS...
expect() {
  local what=$1
  shift
  k "$@" >/dev/null || { k get pods,events; die "$what: this should have happened, see above"; }
  phase "  ok: $what"
}
wait_for() { local what=$1; shift; expect "$what" wait --timeout=120s "$@"; }

say "A private Kubernetes, run by alice, an ordinary user. Its one node stands for the whole Slurm cluster."
show kubectl get nodes -o wide
show sinfo

alice kubectl delete namespace demo --ignore-not-found --timeout=60s >/dev/null
alice kubectl create namespace demo >/dev/null
k wait --for=create serviceaccount/default --timeout=30s >/dev/null
began=$EPOCHREALTIME
for example in two-containers job crashloop deployment mpi; do apply $example.yaml; done

say "Five examples are applied: two containers in a pod, a Job, a crashing container, a Deployment of 3, an MPI program."
wait_for "two-containers: both containers are ready, in one Slurm job" --for=condition=Ready pod/pair
wait_for "deployment: three replicas are available" --for=condition=Available deployment/web
wait_for "job: four pods, two at a time, are complete" --for=condition=Complete job/pi
wait_for "crashloop: the container exited with 42 and is restarted with growing delays" \
  --for=jsonpath='{.status.containerStatuses[0].state.waiting.reason}'=CrashLoopBackOff pod/crash
wait_for "mpi: the program ended well" --for=jsonpath='{.status.phase}'=Succeeded pod/ring
k logs ring | grep -q 'the token passed 4 ranks' || { k logs ring; die "mpi: the token should have passed 4 ranks"; }
phase "  ok: mpi: the token passed 4 ranks"
phase "all of it in $(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f", b - a}') s"

say "What Kubernetes says, and what Slurm says: every pod is one job, <namespace>/<pod>."
show kubectl -n demo get pods -o wide
show squeue -o '%.8i %.36j %.8T %.4C %.8m %.10M %N'
show sacct -X -S now-1minutes -o jobid%8,jobname%40,state%12,elapsed,nodelist%8

say "Logs: of a running container, of a Job's pods, of a container that crashed before."
answered() { k logs pair -c client 2>/dev/null | grep -q says; }
within 60 answered || { k logs pair -c client || true; die "two-containers: the client got no answer over localhost"; }
phase "  ok: two-containers: the client reached the server over localhost"
show kubectl -n demo logs pair -c client
show kubectl -n demo logs -l example=job --prefix
show kubectl -n demo logs crash --previous

say "On the compute node: hpk-pause is PID 1 of the job's container, the pod's containers below it."
node=$(alice squeue -h -n demo/pair -o %N)
printf '\n  %s$ ps of the job demo/pair\n' "$node"
job=$(alice squeue -h -n demo/pair -o %i)
"$here/site/sx" "$node" bash -c "
  pids=\$(scontrol listpids $job | awk 'NR > 1 {print \$1}' | paste -sd,)
  ps -ww -o user:8,pid,ppid,pidns,rss,args --forest -p \$pids" | cut -c1-150 | sed 's/^/  /'

say "What to try next (the site stays up; end it with: make site-down):"
cat <<'X'

  tests/site/sx login -u alice bash                     a shell as alice: kubectl, squeue, hpk are there
  tests/site/sx login -u alice kubectl -n demo exec -it pair -c client -- bash
  tests/site/sx login -u alice kubectl -n demo delete pod -l app=web     three new ones take their place
  tests/site/sx login -u alice kubectl -n demo describe pod crash        the events of a crash loop
  tests/site/sx login -u alice kubectl -n demo scale deployment web --replicas=10
  tests/site/sx login -u alice scancel -n demo/pair     what Kubernetes says when Slurm ends a job
  tests/site/sx login -u alice kubectl delete namespace demo
  tests/site/sx login -u alice hpk status
  more examples: images/examples/, all tests: make test

X
