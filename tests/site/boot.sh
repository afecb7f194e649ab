#!/bin/bash
# Starts a node's daemons, then waits; on TERM (tini forwards it) it stops them
# in order, so that slurmctld saves its state and MariaDB closes its files.
#
#   boot.sh NAME
name=$1
exec </dev/null >>/var/log/boot.log 2>&1
PS4='+ ${SECONDS}s '
set -x

as() { local u=$1; shift; setpriv --reuid "$u" --regid "$u" --init-groups "$@"; }
within() { local end=$((SECONDS + $1)); shift; until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done; }
owned() { local u=$1; shift; mkdir -p "$@" && chown "$u:$u" "$@"; }

# A node that was killed leaves pid files of processes that are no more.
rm -f /run/slurm/*.pid /run/munge/*
if [ -e /site/without-slurm ]; then
  mkdir -p /site/registry
  docker-registry serve /etc/docker/registry/site.yml >/var/log/registry.log 2>&1 &
  registry=$!
  trap 'pkill -TERM -u alice,bob && within 5 sh -c "! pgrep -u alice,bob"; kill $registry; wait $registry; exit 0' TERM
  touch /run/booted
  sleep infinity &
  wait $!
fi
owned munge /run/munge /var/log/munge /var/lib/munge
chmod 755 /run/munge
chmod 700 /var/log/munge /var/lib/munge
owned slurm /run/slurm /var/log/slurm
as munge /usr/sbin/munged

mariadb_up() {
  owned mysql /run/mysqld /var/lib/mysql
  [ -d /var/lib/mysql/mysql ] || mariadb-install-db --user=mysql --datadir=/var/lib/mysql \
    --auth-root-authentication-method=socket --skip-test-db
  mariadbd --user=mysql --bind-address=127.0.0.1 --innodb-buffer-pool-size=64M >/var/log/mariadb.log 2>&1 &
  mariadb=$!
  within 60 mariadb-admin ping
  mariadb -e "create database if not exists slurm_acct_db;
    create user if not exists slurm@localhost identified by 'slurm';
    grant all on slurm_acct_db.* to slurm@localhost;"
}

case $name in
  login)
    mkdir -p /site/registry
    docker-registry serve /etc/docker/registry/site.yml >/var/log/registry.log 2>&1 &
    registry=$!
    mariadb_up
    as slurm /usr/sbin/slurmdbd
    within 60 sacctmgr -n list cluster
    sacctmgr -nP list cluster format=cluster | grep -qx site || sacctmgr -i add cluster site
    if ! sacctmgr -nP list account format=account | grep -qx users; then
      sacctmgr -i add account users
      sacctmgr -i add user alice account=users
      sacctmgr -i add user bob account=users
    fi
    owned slurm /var/lib/slurm /var/lib/slurm/ctld
    as slurm /usr/sbin/slurmctld
    ;;
  *)
    mkdir -p /var/spool/slurm/d
    /usr/sbin/slurmd -N "$name"
    ;;
esac

# stop_daemon NAME: TERM, and up to 5 s to follow it.
stop_daemon() {
  local p
  p=$(cat "/run/slurm/$1.pid" 2>/dev/null) || return 0
  kill "$p" && within 5 sh -c "! kill -0 $p"
}
stop() {
  # Users' programs first (etcd among them), as any machine that shuts down.
  pkill -TERM -u alice,bob && within 5 sh -c '! pgrep -u alice,bob'
  stop_daemon slurmd
  stop_daemon slurmctld
  stop_daemon slurmdbd
  for p in $mariadb $registry; do kill "$p"; wait "$p"; done
  exit 0
}
trap stop TERM
touch /run/booted
sleep infinity &
wait $!
