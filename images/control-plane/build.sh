#!/bin/bash
# Builds the control plane's programs, unmodified, from the Go modules beside
# this script (each pinned by go.mod and go.sum), and prints the folder that
# holds them as its last line.
#
#   build.sh [--kubernetes-bin DIR] [NAME...]
#
# NAME: kube-apiserver kube-controller-manager kube-scheduler kubectl etcd
#       coredns (all of these if none is given), metrics-server (only on demand).
# --kubernetes-bin DIR: take the programs that DIR holds (for instance those of
#       an official Kubernetes release) and build only the rest.
#
# Products are kept in $HPK_CACHE/control-plane-<key>/bin, where the key is the
# content of everything that decides them; a second run finds them and is done.
# HPK_CACHE defaults to ${XDG_CACHE_HOME:-$HOME/.cache}/hpk.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HPK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hpk}
given=
names=()
while [ $# -gt 0 ]; do
  case $1 in
    --kubernetes-bin) given=$(realpath -e "${2:?--kubernetes-bin needs a folder}"); shift 2 ;;
    -h|--help) usage; exit 0 ;;
    -*) echo "build.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
    *) names+=("$1"); shift ;;
  esac
done
[ ${#names[@]} -gt 0 ] || names=(kube-apiserver etcd kubectl kube-scheduler kube-controller-manager coredns)

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

is_given() { [ -n "$given" ] && [ -x "$given/$1" ]; }

to_build=()
for n in "${names[@]}"; do is_given "$n" || to_build+=("$n"); done
if [ ${#to_build[@]} -gt 0 ] && ! command -v go >/dev/null; then
  echo "build.sh: no go command: install Go 1.26 or later, or give every program with --kubernetes-bin" >&2
  exit 1
fi

key=$(
  { cd "$here"
    cat build.sh */go.mod */go.sum
    go version 2>/dev/null || true
    [ -z "$given" ] || (cd "$given" && for n in "${names[@]}"; do [ ! -x "$n" ] || sha256sum "$n"; done)
  } | sha256sum | cut -c1-16
)
bin=$cache/control-plane-$key/bin
mkdir -p "$bin"

# One build at a time: a second caller waits and then finds the products.
exec 9>"$cache/control-plane-$key/lock"
flock 9

# version_flags MODULE... prints the -X flags that name a module's version.
kubernetes_flags() {
  local v minor p
  v=$(cd "$here/kubernetes" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
  minor=${v#v1.}; minor=${minor%%.*}
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf ' -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean' \
      "$p" "$v" "$p" "$p" "$minor" "$p"
  done
}

build() { # build NAME MODULE-FOLDER PACKAGE FLAGS
  local t=$SECONDS
  say "building $1"
  (cd "$here/$2" && CGO_ENABLED=0 nice go build -trimpath -ldflags "-s -w$4" -o "$bin/.$1.new" "$3")
  mv "$bin/.$1.new" "$bin/$1"
  say "built $1 in $((SECONDS - t)) s, $(($(stat -c %s "$bin/$1") / 1000000)) MB"
}

for n in "${names[@]}"; do
  if [ -x "$bin/$n" ]; then
    say "$n is there"
  elif is_given "$n"; then
    cp "$given/$n" "$bin/.$n.new"
    mv "$bin/.$n.new" "$bin/$n"
    say "took $n from $given"
  else
    case $n in
      kube-apiserver|kube-controller-manager|kube-scheduler|kubectl)
        build "$n" kubernetes "k8s.io/kubernetes/cmd/$n" "$(kubernetes_flags)" ;;
      etcd) build etcd etcd go.etcd.io/etcd/server/v3 "" ;;
      coredns) build coredns coredns github.com/coredns/coredns "" ;;
      metrics-server)
        v=$(cd "$here/metrics-server" && go list -m -f '{{.Version}}' sigs.k8s.io/metrics-server)
        build metrics-server metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server \
          " -X sigs.k8s.io/metrics-server/pkg/version.gitVersion=$v" ;;
      *) echo "build.sh: unknown program $n (see --help)" >&2; exit 2 ;;
    esac
  fi
done
echo "$bin"
