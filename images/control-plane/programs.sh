#!/bin/bash
# Builds the control plane's programs from the Go modules beside this script
# (each pinned by go.mod and go.sum; upstream's code is not changed), and prints
# the folder that holds them as its last line.
#
#   programs.sh [--kubernetes-bin DIR] [NAME...]
#
# NAME: kube-apiserver kube-controller-manager kube-scheduler kubectl etcd
#       etcdutl coredns (all of these if none is given), metrics-server (only on
#       demand).
# --kubernetes-bin DIR: take the programs that DIR holds (for instance those of
#       an official Kubernetes release) and build only the rest.
#
# Products are kept in $HPK_CACHE/control-plane-<key>/bin, where the key is the
# content of everything that decides them; a second run finds them and is done.
# HPK_CACHE defaults to ${XDG_CACHE_HOME:-$HOME/.cache}/hpk.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$here/programs.sh"; }

given=
names=()
while [ $# -gt 0 ]; do
  case $1 in
    --kubernetes-bin) given=$(realpath -e "${2:?--kubernetes-bin needs a folder}"); shift 2 ;;
    -h|--help) usage; exit 0 ;;
    -*) die "unknown option $1 (see --help)" ;;
    *) names+=("$1"); shift ;;
  esac
done
# The API server first: its build fills Go's cache for the others.
[ ${#names[@]} -gt 0 ] || names=(kube-apiserver etcd etcdutl kubectl kube-scheduler kube-controller-manager coredns)

is_given() { [ -n "$given" ] && [ -x "$given/$1" ]; }

to_build=()
for n in "${names[@]}"; do is_given "$n" || to_build+=("$n"); done
if [ ${#to_build[@]} -gt 0 ] && ! command -v go >/dev/null; then
  die "no go command for ${to_build[*]}: install Go 1.26 or later, or give these programs with --kubernetes-bin"
fi

key=$(
  { cat "$here"/programs.sh "$here"/*/go.mod "$here"/*/go.sum "$here"/*/*/main.go
    go version 2>/dev/null || true
    [ -z "$given" ] || (cd "$given" && for n in "${names[@]}"; do [ ! -x "$n" ] || sha256sum "$n"; done)
  } | sha256sum | cut -c1-16
)
locked "$HPK_CACHE/control-plane-$key"
bin=$HPK_CACHE/control-plane-$key/bin
mkdir -p "$bin"

# The linker flags that name Kubernetes' version; without them kubectl shows nonsense.
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
  phase "building ${1##*/}"
  (cd "$here/$2" && CGO_ENABLED=0 nice go build -trimpath -ldflags "-s -w$4" -o "$bin/$1.new" "$3")
  mv "$bin/$1.new" "$bin/$1"
  phase "built ${1##*/} in $((SECONDS - t)) s, $(($(stat -c %s "$bin/$1") / 1000000)) MB"
}

named() { # named NAME PROGRAM MODULE-FOLDER PACKAGE FLAGS
  local together=$HPK_CACHE/control-plane-$key/$2
  [ -x "$together" ] || build "../$2" "$3" "$4" "$5"
  ln -f "$together" "$bin/$1"
}

for n in "${names[@]}"; do
  if [ -x "$bin/$n" ]; then
    continue
  elif is_given "$n"; then
    cp "$given/$n" "$bin/.$n.new"
    mv "$bin/.$n.new" "$bin/$n"
    phase "took $n from $given"
  else
    case $n in
      # One program by several names: docs/adr/0005-control-plane-image.md.
      kube-apiserver|kube-controller-manager|kube-scheduler)
        named "$n" components kubernetes ./components "$(kubernetes_flags)" ;;
      etcd|etcdutl) named "$n" etcd-programs etcd ./programs "" ;;
      kubectl) build kubectl kubernetes k8s.io/kubernetes/cmd/kubectl "$(kubernetes_flags)" ;;
      coredns) build coredns coredns ./dns "" ;;
      metrics-server)
        v=$(cd "$here/metrics-server" && go list -m -f '{{.Version}}' sigs.k8s.io/metrics-server)
        build metrics-server metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server \
          " -X sigs.k8s.io/metrics-server/pkg/version.gitVersion=$v" ;;
      *) die "unknown program $n (see --help)" ;;
    esac
  fi
done
echo "$bin"
