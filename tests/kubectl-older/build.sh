#!/bin/bash
# Builds kubectl of the minor version before the control plane's from its pinned Go module, and prints the program's
# path as the last line. The product is kept in $HPK_CACHE/kubectl-older-<key>, the key being the content of what
# decides it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
command -v go >/dev/null || die "no go command: install Go 1.26 or later"
out=$HPK_CACHE/kubectl-older-$(cat "$here"/{build.sh,main.go,go.mod,go.sum} | sha256sum | cut -c1-16)
locked "$out"
if [ ! -x "$out/kubectl" ]; then
  v=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubectl)
  v=v1${v#v0}
  minor=${v#v1.}
  flags="-s -w"
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $p.gitVersion=$v -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*} -X $p.gitTreeState=clean"
  done
  phase "building kubectl $v"
  (cd "$here" && CGO_ENABLED=0 nice go build -trimpath -ldflags "$flags" -o "$out/.kubectl.new" .)
  mv "$out/.kubectl.new" "$out/kubectl"
fi
echo "$out/kubectl"
