# Sourced by the site's scripts: where the site lives, its nodes, and how to
# find a node that runs. It changes nothing.
#
# SITE_DIR (default /var/tmp/hpk-site) holds all of one site's state: etc/ and
# home/ (shared by its nodes), shared/ (seen as /site), nodes/<name>/ (what is a
# node's own), run/ (pids and logs of the nodes). Sites with different folders
# can run side by side: nothing of a site shows in the machine's own network.
#
# shellcheck disable=SC2034  # variables are for the scripts that source this

SITE_DIR=${SITE_DIR:-/var/tmp/hpk-site}
mkdir -p "$SITE_DIR"
SITE_DIR=$(realpath "$SITE_DIR")
export SITE_DIR

# One machine without Slurm (up.sh --without-slurm), or a login node and two compute nodes.
WITHOUT_SLURM=
NODES="login c1 c2"
if [ -e "$SITE_DIR/without-slurm" ]; then
  WITHOUT_SLURM=yes
  NODES=login
fi
# Nothing, or how calls that Linux 4.18 lacks are answered (up.sh --old-kernel).
OLD_KERNEL=$(cat "$SITE_DIR/old-kernel" 2>/dev/null || true)
# IPv6 of the login node and c2, and an address behind the login node.
SITE_V6=fd00:77::
WORLD_V6=fd00:77:1::1
CGROUPS="cpu cpuacct cpuset memory devices freezer blkio pids"
# Names network namespaces and cgroups of this site on this machine.
TAG=hpk-$(printf %s "$SITE_DIR" | sha256sum | cut -c1-6)

addr_of() {
  case $1 in
    login) echo 10.77.0.1 ;;
    c1) echo 10.77.0.11 ;;
    c2) echo 10.77.0.12 ;;
    *) echo "no node $1: the nodes are $NODES" >&2; return 1 ;;
  esac
}

# A process is a node's PID 1 if it is tini with this site's folder and the
# node's name in its environment; a recycled pid never passes for it.
is_node() { # is_node PID NAME
  [ "$(cat "/proc/$1/comm" 2>/dev/null)" = tini ] &&
    grep -qzxF "SITE_NODE=$SITE_DIR:$2" "/proc/$1/environ" 2>/dev/null
}

# node_pid NAME prints the host's pid of a running node's PID 1. The recorded
# pid is only a hint: a script that died before it wrote it changes nothing.
node_pid() {
  local p
  p=$(cat "$SITE_DIR/run/$1.pid" 2>/dev/null)
  if [ -n "$p" ] && is_node "$p" "$1"; then echo "$p"; return; fi
  # shellcheck disable=SC2013  # a pid is one word
  for p in $(grep -lx tini /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3); do
    if is_node "$p" "$1"; then
      echo "$p" >"$SITE_DIR/run/$1.pid"
      echo "$p"
      return
    fi
  done
  return 1
}

# within SECONDS CMD...: runs CMD until it succeeds, or fails after SECONDS.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}
