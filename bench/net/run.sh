#!/bin/bash
# The overlay between two nodes of the site, beside kernel VXLAN and the
# boringtun command in the same run; then real pods. The site must be up with
# HPK on it and no pods (make site-up); needs root.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
. "$here/../../tests/site/common.sh"
need iperf3 iperf3
need ping iputils-ping
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HPK_CACHE/cargo-target}
for n in c1 c2; do
  [ -e "/run/netns/$TAG-$n" ] || die "node $n is not up: make site-up"
done
cd "$here/../.."
target=x86_64-unknown-linux-gnu
phase "building the datapath (release, static)"
cargo build --quiet --release -p hpk-netns --examples --target $target \
  --config "target.$target.rustflags=[\"-C\",\"target-feature=+crt-static\"]" >&2
boringtun=$HPK_CACHE/tools/boringtun/bin/boringtun-cli
if [ ! -x "$boringtun" ]; then
  phase "building the boringtun command"
  cargo install --quiet boringtun-cli --root "$HPK_CACHE/tools/boringtun" >&2 || phase "no boringtun command: its rows stay empty"
fi
# What else runs on the machine must not take the CPU from one kind more than from another: the kernel's VXLAN works in
# interrupts, which no process can delay, ours in processes. Linux shares the CPU out by sessions first (autogroup), so
# the measurement is a session of its own, and that session is what is nice to nobody.
setsid -w bash -c 'echo -19 >/proc/self/autogroup 2>/dev/null || true; exec nice -n -19 "$@"' -- \
  python3 "$here/measure.py" "$CARGO_TARGET_DIR/$target/release/examples" "$boringtun" "$TAG"
echo
echo "### Real pods"
echo
"$here/pods.py" "$here/../../tests/site/sx"
