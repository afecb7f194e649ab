# Runs a program in a pod's parent container on this node, as hpk-netns makes it where the node's Apptainer is to make the
# containers: $1 is a folder for /hpk/pod, the rest the command. With FUSE=1 that Apptainer uses fuse-overlayfs, as on a
# kernel that gives user namespaces no overlay.
set -euo pipefail
pod=$1
shift
scratch=$(mktemp -d)
trap 'chmod -R u+rwX "$scratch" 2>/dev/null; rm -rf "$scratch" 2>/dev/null || unshare -U --map-root-user --map-auto rm -rf "$scratch"' EXIT
mkdir "$scratch/run" "$scratch/etc"
cp -r /etc/apptainer/. "$scratch/etc" 2>/dev/null || true
[ -z "${FUSE:-}" ] || sed -i 's/^enable overlay = .*/enable overlay = driver/' "$scratch/etc/apptainer.conf"
binds=()
for path in /usr /bin /sbin /lib /lib64 /var/lib/apptainer; do
  [ ! -e "$path" ] || binds+=(--mount "type=bind,source=$(realpath "$path"),destination=$path,ro")
done
for path in /dev/fuse /dev/full; do
  binds+=(--mount "type=bind,source=$path,destination=$path")
done
cd /
unshare -U --map-root-user --map-auto --uts --net \
  apptainer --quiet exec --containall --no-init --no-eval --no-home "${binds[@]}" \
  --mount "type=bind,source=$scratch/etc,destination=/etc/apptainer,ro" \
  --mount "type=bind,source=$scratch/run,destination=/hpk/scratch" \
  --mount "type=bind,source=$pod,destination=/hpk/pod" \
  ~/.local/share/hpk/pause "$@"
