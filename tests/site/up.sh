#!/bin/bash
# Brings up a small but real HPC site on one machine, as root: a login node and
# two compute nodes (each with network, mount, UTS, IPC, PID and cgroup
# namespaces of its own), munge, slurmctld, slurmdbd with MariaDB, two slurmd, a
# container registry at login:5000 with the project's images, a shared /home,
# Apptainer without setuid, users alice and bob with subordinate ids.
#
#   up.sh [--no-images] [--without-slurm] [--old-kernel enosys|eperm]
#
# With --old-kernel everything in the nodes runs as on Linux 4.18, as far as
# system calls tell (old-kernel.c). A site stays what it was made as.
#
# With --without-slurm it is one machine named login: the same root filesystem,
# registry and users, and no daemon of Slurm's nor configuration for one. A site
# stays what it was made as.
#
# Idempotent, also after it was killed half-way. SITE_DIR says where the site
# lives (default /var/tmp/hpk-site), HPK_CACHE where its root filesystem and
# images are kept (default ~/.cache/hpk).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
images=yes without_slurm= old_kernel=
while [ $# -gt 0 ]; do
  case $1 in
    --no-images) images= ;;
    --without-slurm) without_slurm=yes ;;
    --old-kernel)
      old_kernel=${2:-}
      [[ $old_kernel = enosys || $old_kernel = eperm ]] || die "--old-kernel: enosys or eperm"
      shift
      ;;
    *) die "unknown argument $1" ;;
  esac
  shift
done
. "$here/common.sh"
if [ -n "$without_slurm" ] && [ -z "$WITHOUT_SLURM" ]; then
  [ ! -e "$SITE_DIR/etc" ] || die "$SITE_DIR is a site with Slurm: give another SITE_DIR"
  touch "$SITE_DIR/without-slurm"
  . "$here/common.sh"
fi

if [ -n "$old_kernel" ] && [ "$OLD_KERNEL" != "$old_kernel" ]; then
  [ ! -e "$SITE_DIR/etc" ] || die "$SITE_DIR is a site with another kernel: give another SITE_DIR"
  echo "$old_kernel" >"$SITE_DIR/old-kernel"
  . "$here/common.sh"
fi

[ "$(id -u)" = 0 ] || die "the site needs root (namespaces, cgroups, mounts)"
need ip iproute2
need nsenter util-linux
mkdir -p "$SITE_DIR"/{run,home,shared,nodes}
exec 8>"$SITE_DIR/run/lock"
flock 8

rootfs=$("$here/rootfs.sh")

# A site made for another root filesystem has other system users' ids in its
# files: everything but the homes is made anew.
key=$(basename "$(dirname "$rootfs")")
if [ "$(cat "$SITE_DIR/rootfs-key" 2>/dev/null)" != "$key" ]; then
  if [ -e "$SITE_DIR/etc" ]; then
    phase "new root filesystem: the site starts anew, homes are kept"
    "$here/down.sh" --locked
    rm -rf "${SITE_DIR:?}"/{etc,nodes,shared}
    mkdir -p "$SITE_DIR"/{shared,nodes}
  fi
  echo "$key" >"$SITE_DIR/rootfs-key"
fi

configure() {
  local etc=$SITE_DIR/etc new=$SITE_DIR/etc.new u id n
  if [ ! -e "$etc" ]; then
    rm -rf "$new"
    cp -a "$rootfs/etc" "$new"
    for u in alice:1000 bob:1001; do
      id=${u#*:} u=${u%:*}
      echo "$u:x:$id:$id:$u:/home/$u:/bin/bash" >>"$new/passwd"
      echo "$u:x:$id:" >>"$new/group"
      echo "$u:!:20000:0:99999:7:::" >>"$new/shadow"
    done
    printf 'alice:100000:65536\nbob:165536:65536\n' | tee "$new/subuid" >"$new/subgid"
    { echo 127.0.0.1 localhost; for n in $NODES; do echo "$(addr_of "$n") $n"; done; } >"$new/hosts"
    echo '# This site has no resolver of its own.' >"$new/resolv.conf"
    (umask 077 && head -c 128 /dev/urandom >"$new/munge/munge.key")
    chmod 400 "$new/munge/munge.key"
    chown --reference="$new/munge" "$new/munge/munge.key"
    mkdir -p "$new/slurm" "$new/docker/registry"
    mv "$new" "$etc"
  fi
  # A project's: who works on it is in the group, and its folder is for nobody else.
  if ! grep -q '^project:' "$etc/group"; then
    echo 'project:x:2000:alice' >>"$etc/group"
    # Slurm keeps everybody's groups for ten minutes.
    reconfigure=yes
  fi
  if [ -z "$WITHOUT_SLURM" ]; then
    for f in slurm.conf gres.conf cgroup.conf job_submit.lua; do
      cmp -s "$here/conf/$f" "$etc/slurm/$f" && continue
      install -m 644 "$here/conf/$f" "$etc/slurm/$f"
      reconfigure=yes
    done
    install -m 600 "$here/conf/slurmdbd.conf" "$etc/slurm/"
    chown "$(awk -F: '$1 == "slurm" {print $3 ":" $4}' "$etc/passwd")" "$etc/slurm/slurmdbd.conf"
  else
    rm -rf "$etc/slurm"
    touch "$SITE_DIR/shared/without-slurm"
  fi
  cmp -s "$here/conf/registry.yml" "$etc/docker/registry/site.yml" || {
    install -m 644 "$here/conf/registry.yml" "$etc/docker/registry/site.yml"
    reconfigure=yes
  }
  install -m 755 "$here/boot.sh" "$SITE_DIR/shared/boot.sh"
  if [ -n "$OLD_KERNEL" ] && [ "$here/old-kernel.c" -nt "$SITE_DIR/shared/old-kernel" ]; then
    need gcc gcc
    gcc -static -O2 -o "$SITE_DIR/shared/old-kernel" "$here/old-kernel.c"
  fi
  for u in alice:1000 bob:1001; do
    id=${u#*:} u=${u%:*}
    [ -e "$SITE_DIR/home/$u" ] && continue
    cp -a "$rootfs/etc/skel" "$SITE_DIR/home/$u"
    chown -R "$id:$id" "$SITE_DIR/home/$u"
    chmod 750 "$SITE_DIR/home/$u"
  done
  [ -e "$SITE_DIR/home/project" ] || install -d -o 0 -g 2000 -m 2770 "$SITE_DIR/home/project"
}

# A bridge in a namespace of its own and one veth for each node.
network() {
  local n
  [ -e "/run/netns/$TAG-sw" ] || ip netns add "$TAG-sw"
  ip -n "$TAG-sw" link show br0 >/dev/null 2>&1 || ip -n "$TAG-sw" link add br0 type bridge
  ip -n "$TAG-sw" link set br0 up
  ip -n "$TAG-sw" link set lo up
  for n in $NODES; do
    [ -e "/run/netns/$TAG-$n" ] || ip netns add "$TAG-$n"
    if ! ip -n "$TAG-$n" link show eth0 >/dev/null 2>&1; then
      ip -n "$TAG-sw" link del "v-$n" 2>/dev/null || true
      ip -n "$TAG-sw" link add "v-$n" type veth peer name eth0 netns "$TAG-$n"
    fi
    ip -n "$TAG-sw" link set "v-$n" master br0 up
    ip -n "$TAG-$n" addr replace "$(addr_of "$n")/24" dev eth0
    ip -n "$TAG-$n" link set lo up
    ip -n "$TAG-$n" link set eth0 up
  done
  # The world beyond the login node has one address of IPv6. c2 has a way there, c1 has none.
  ip -n "$TAG-login" addr replace "$WORLD_V6/128" dev lo nodad
  ip -n "$TAG-login" addr replace "${SITE_V6}1/64" dev eth0 nodad
  [ -z "$WITHOUT_SLURM" ] || return 0
  ip -n "$TAG-c2" addr replace "${SITE_V6}12/64" dev eth0 nodad
  ip -n "$TAG-c2" -6 route replace default via "${SITE_V6}1" dev eth0
}

# start NODE: in a session, cgroup and namespaces of its own, holding nothing of
# the caller's but its log.
start() {
  local n=$1 c own d
  (
    for fd in "/proc/$BASHPID/fd"/*; do
      fd=${fd##*/}
      if [ "$fd" -gt 2 ] && [ "$fd" -lt 255 ]; then eval "exec $fd>&-"; fi
    done
    # Held until the node's PID 1 is there: a start that outlived a killed
    # up.sh is waited for, not doubled.
    exec 7>"$SITE_DIR/run/$n.start"
    flock 7
    ! node_pid "$n" >/dev/null || exit 0
    for c in $CGROUPS; do
      own=$(grep ":$c:" /proc/self/cgroup | cut -d: -f3)
      d=/sys/fs/cgroup/$c${own%/}/$TAG-$n
      mkdir -p "$d"
      if [ "$c" = cpuset ]; then
        cat "${d%/*}/cpuset.cpus" >"$d/cpuset.cpus"
        cat "${d%/*}/cpuset.mems" >"$d/cpuset.mems"
      fi
      echo "$BASHPID" >"$d/cgroup.procs"
    done
    cd /
    kernel=()
    [ -z "$OLD_KERNEL" ] || kernel=("$SITE_DIR/shared/old-kernel" "$OLD_KERNEL")
    exec setsid nsenter --net="/run/netns/$TAG-$n" \
      unshare --mount --uts --ipc --cgroup --pid --fork "${kernel[@]}" bash "$here/node-init.sh" "$n" "$rootfs" \
      </dev/null >"$SITE_DIR/run/$n.log" 2>&1
  ) &
  disown
}

# Both nodes usable: neither down, unknown, drained nor silent ('*').
slurm_ready() {
  local states
  states=$("$here/sx" login timeout 5 sinfo -h -N -p main -o '%N %T' 2>/dev/null) || return 1
  [ "$(grep -cE '^c[12] (idle|mixed|allocated)$' <<<"$states")" = 2 ] && return
  # Nodes of a site that was killed can be left drained or down: take them back.
  if grep -qE 'drain|down' <<<"$states"; then
    "$here/sx" login scontrol update nodename=c1,c2 state=resume >/dev/null 2>&1
  fi
  return 1
}

was_up=yes reconfigure=
for n in $NODES; do node_pid "$n" >/dev/null || was_up=; done
[ -n "$was_up" ] || phase "site in $SITE_DIR: configuration, network, nodes"
configure
# Not everything of a changed configuration is taken up by `scontrol reconfigure`.
if [ -n "$was_up" ] && [ -n "$reconfigure" ]; then
  phase "the site's configuration changed: it is restarted"
  "$here/down.sh" --locked
  was_up=
fi
network
for n in $NODES; do node_pid "$n" >/dev/null || start "$n"; done
for n in $NODES; do
  within 20 node_pid "$n" >/dev/null || { cat "$SITE_DIR/run/$n.log" >&2; die "node $n did not start"; }
done
if [ -n "$WITHOUT_SLURM" ]; then
  [ -z "$images" ] || "$here/../../images/push.sh"
  phase "one machine is up, in the nodes' root filesystem; no daemon of Slurm's runs"
  exit
fi
[ -n "$was_up" ] || phase "waiting for Slurm"
within 120 slurm_ready || {
  "$here/sx" login sinfo -N -l >&2 || true
  tail -n 20 "$SITE_DIR"/nodes/*/fs/var/log/boot.log >&2
  die "Slurm is not ready after 120 s; logs: $SITE_DIR/nodes/*/fs/var/log"
}
[ -z "$images" ] || "$here/../../images/push.sh"
phase "site is up: $("$here/sx" login sinfo -h -p main -o '%D nodes, %P, %T' | paste -sd';')"
