#!/bin/bash
# The first program of a node, in new mount, UTS, IPC, PID and cgroup
# namespaces and in the node's network namespace: builds the node's root, makes
# it the root, and becomes tini with boot.sh below it.
#
#   node-init.sh NAME ROOTFS       with SITE_DIR in the environment
#
# The root is the pristine ROOTFS, read-only; /etc and /home are the site's,
# /site its shared folder, and the folders below nodes/NAME/fs the node's own.
set -euo pipefail
name=$1 rootfs=$2
own=$SITE_DIR/nodes/$name
root=$own/root

mount --make-rprivate /
hostname "$name"
mkdir -p "$root"
mount --bind "$rootfs" "$root"
mount -o remount,bind,ro "$root"

mount --bind "$SITE_DIR/etc" "$root/etc"
mount --bind "$SITE_DIR/home" "$root/home"
mount --bind "$SITE_DIR/shared" "$root/site"
for d in root tmp var/tmp var/log var/cache var/lib/slurm var/spool/slurm var/lib/munge var/lib/mysql var/lib/cni; do
  mkdir -p "$own/fs/$d"
  mount --bind "$own/fs/$d" "$root/$d"
done
chmod 1777 "$own/fs/tmp" "$own/fs/var/tmp"
chmod 700 "$own/fs/root"

mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root"/run/{munge,slurm,lock,netns,mysqld}
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"

# Every node has a /dev of its own, where ordinary users may open fuse and tun.
dev=$root/dev
mount -t tmpfs -o mode=755 tmpfs "$dev"
mkdir -p "$dev"/{pts,shm,mqueue,net}
for n in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229 net/tun:10:200; do
  IFS=: read -r path major minor <<<"$n"
  mknod -m 666 "$dev/$path" c "$major" "$minor"
done
# What stands for GPUs (conf/gres.conf), with NVIDIA's names: devices that read as zeros.
for n in nvidia0 nvidia1 nvidiactl; do mknod -m 666 "$dev/$n" c 1 5; done
mknod -m 660 "$dev/loop-control" c 10 237
for i in 0 1 2 3 4 5 6 7; do mknod -m 660 "$dev/loop$i" b 7 "$i"; done
ln -s pts/ptmx "$dev/ptmx"
ln -s /proc/self/fd "$dev/fd"
ln -s fd/0 "$dev/stdin"
ln -s fd/1 "$dev/stdout"
ln -s fd/2 "$dev/stderr"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$dev/shm"
mount -t mqueue mqueue "$dev/mqueue"

# Our cgroup namespace is rooted at this node's cgroup in every v1 hierarchy.
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir "$root/sys/fs/cgroup/$c"
  mount -t cgroup -o "$c" cgroup "$root/sys/fs/cgroup/$c"
done
mkdir "$root/sys/fs/cgroup/unified"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified" || true

sysctl -qw net.ipv4.ip_forward=1 net.ipv4.ping_group_range="0 2147483647" || true

cd "$root"
pivot_root . .
umount -l .
cd /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
  SITE_NODE="$SITE_DIR:$name" /usr/bin/tini -- /site/boot.sh "$name" 7>&-
