#!/bin/bash
# The image of a pod's parent container: hpk-pause, alone in a folder of mount
# points. It is a sandbox folder, what starts fastest: nothing is unpacked or
# mounted through FUSE.
#
#   build.sh HPK-PAUSE OUT      OUT is replaced
set -euo pipefail
program=${1:?usage: build.sh HPK-PAUSE OUT} out=${2:?usage: build.sh HPK-PAUSE OUT}

rm -rf "$out.new"
mkdir -p "$out.new"
cd "$out.new"
# Mount points for what the job brings (hpk/...) and what Apptainer brings.
mkdir -p hpk/{pod,images,scratch,host,run} dev etc home proc root run sys tmp usr var/tmp bin lib lib64 sbin opt
# Apptainer binds these over the image's: they must be there.
touch etc/{hosts,resolv.conf,localtime,nsswitch.conf}
# A nested Apptainer asks who its user and group are.
echo root:x:0:0::/root:/bin/sh >etc/passwd
echo root:x:0: >etc/group
install -m 755 "$program" hpk-pause
rm -rf "$out"
mv "$out.new" "$out"
