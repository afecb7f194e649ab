#!/bin/bash
# Upstream Kubernetes' own end-to-end tests against HPK on the site, as alice.
#
#   run.sh SET [OPTION...]     sets and options: judge.py --help
#
# Results: $SITE_DIR/home/alice/conformance/SET/summary.md
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
. "$here/../site/common.sh"
sx=$here/../site/sx
set_name=${1:?usage: run.sh SET [OPTION...]}
shift

# What the images are made of (command, package).
for pair in dig:bind9-dnsutils curl:curl etcd:etcd-server iperf:iperf ip:iproute2 \
  nc:netcat-openbsd python3:python3 socat:socat nsenter:util-linux; do
  need "${pair%%:*}" "${pair#*:}"
done
bin=$("$here/programs.sh" | tail -n 1)
images=$(dirname "$bin")/images-$(key_of "$here/images.py")
if [ ! -e "$images/done" ]; then
  phase "making the test images"
  coredns=$("$here/../../images/control-plane/programs.sh" coredns | tail -n 1)/coredns
  busybox=$(dirname "$("$here/../../images/busybox/build.sh" | tail -n 1)")/root/bin/busybox
  python3 "$here/images.py" "$bin" "$coredns" "$busybox" "$images"
  touch "$images/done"
fi

home=$SITE_DIR/home/alice/conformance
mkdir -p "$home"
if [ "$(cat "$home/pushed" 2>/dev/null)" != "$images" ]; then
  phase "pushing the test images to the site's registry"
  mkdir -p "$SITE_DIR/shared/conformance"
  cp -r "$images"/*/ "$SITE_DIR/shared/conformance/"
  "$sx" login bash -euc 'cd /site/conformance; for name in */name; do
    skopeo copy -q --insecure-policy --dest-tls-verify=false "oci:${name%/name}" "docker://login:5000/$(cat "$name")"; done'
  # Their names are the same as before: what alice's store has by them is older.
  "$sx" login -u alice bash -c 'cd /site/conformance; for name in */name; do
    hpk image rm "login:5000/$(cat "$name")" >/dev/null 2>&1 || true; done'
  rm -rf "$SITE_DIR/shared/conformance"
  echo "$images" >"$home/pushed"
fi
cp "$here/judge.py" "$here/never.txt" "$here/beyond.txt" "$here/driver.yaml" "$home/"
cmp -s "$bin/e2e.test" "$home/e2e.test" || cp "$bin/e2e.test" "$home/"
# Two registries stay out of reach on purpose: tests want a pull from them to fail.
cat >"$home/repo-list.yaml" <<Y
promoterE2eRegistry: login:5000/e2e-test-images
buildImageRegistry: login:5000/build-image
gcEtcdRegistry: login:5000
gcRegistry: login:5000
sigStorageRegistry: login:5000/sig-storage
dockerLibraryRegistry: login:5000/library
invalidRegistry: invalid.invalid/invalid
privateRegistry: private.invalid/authenticated
Y
chown -R 1000:1000 "$home"
phase "running the set $set_name"
exec "$sx" login -u alice python3 conformance/judge.py --e2e /home/alice/conformance/e2e.test \
  --kubectl /home/alice/.local/bin/kubectl --kubeconfig /home/alice/.hpk/kubeconfig \
  --repo-list /home/alice/conformance/repo-list.yaml --out "/home/alice/conformance/$set_name" "$set_name" "$@"
