#!/bin/bash
# Tries the archive of `make dist` as a user would who has no tool chain: bob, on
# the site's login node, from the archive to a running pod, timed; then all goes
# again. Slurm's client and Apptainer are there, nothing of HPK is.
#
#   try.sh ARCHIVE [SECONDS]     SECONDS: how long it may take at most (default: only said)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../site/common.sh"
. "$here/../../images/lib.sh"
archive=${1:?usage: try.sh ARCHIVE [SECONDS]} most=${2:-}
bob() { "$here/../site/sx" login -u bob "$@"; }

home=$SITE_DIR/home/bob
[ ! -e "$home/.local/bin/hpk" ] || die "bob has HPK already: remove $home/.local and $home/.hpk"
install -m 644 "$archive" "$home/hpk.tar.zst"
bob bash -c 'command -v cargo go make kubectl hpk && exit 1; true' || die "bob has tools that a user of a site lacks"

phase "from the archive to a running pod"
began=$EPOCHREALTIME
bob bash -ec '
  tar -xf hpk.tar.zst
  ./hpk-*-x86_64/install.sh
  hpk up
  kubectl run hello --image="oci:$HOME/.local/share/hpk/images/busybox" --command -- sh -c "echo hello; sleep 600"
  kubectl wait --for=condition=Ready pod/hello --timeout=120s
  kubectl logs hello'
took=$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN {printf "%d", b - a}')
phase "a running pod after $took s"
[ -z "$most" ] || [ "$took" -le "$most" ] || die "it took $took s, more than $most s"

phase "and away again"
bob hpk uninstall 2>/dev/null && die "hpk uninstall removed programs that run"
bob hpk down --pods
within 60 bash -c "! '$here/../site/sx' login -u bob squeue --me -h | grep -q ." || die "bob's jobs did not end"
bob hpk uninstall --state
left=$(bob bash -c 'ls -A ~/.local/bin ~/.local/share ~/.local/libexec ~/.hpk 2>/dev/null | grep -v : | grep . || true')
[ -z "$left" ] || die "hpk uninstall left: $left"
rm -rf "$home"/hpk.tar.zst "$home"/hpk-*-x86_64
phase "nothing is left"
