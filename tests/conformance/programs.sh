#!/bin/bash
# Builds what the judge needs from the pinned Kubernetes module: e2e.test and the
# programs of its test images. Prints the folder that holds them as its last line.
#
#   programs.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
need gcc gcc
need skopeo skopeo
module=$here/../../images/control-plane/kubernetes
out=$HPK_CACHE/conformance-$(key_of "$module/go.mod" "$module/go.sum" "$here/programs.sh")
locked "$out"
bin=$out/bin
mkdir -p "$bin"
cd "$module"
export CGO_ENABLED=0
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
source=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)
minor=${version#v1.}
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*} -X $package.gitTreeState=clean"
done

# made NAME CMD...: runs CMD once; its product is bin/NAME
made() {
  local name=$1
  shift
  [ -e "$bin/$name" ] && return
  phase "building $name"
  nice "$@"
}
link() { made "$1" go build -trimpath -ldflags "$flags" -o "$bin/$1" "$2"; }

link agnhost k8s.io/kubernetes/test/images/agnhost
link nnp k8s.io/kubernetes/test/images/nonewprivs
link sample-apiserver k8s.io/sample-apiserver
made pause gcc -Os -static -s -DVERSION=test -o "$bin/pause" "$source/build/pause/linux/pause.c"
made e2e.test go test -c -vet=off -trimpath -ldflags "$flags" -o "$bin/e2e.test" k8s.io/kubernetes/test/e2e
# Data files that the test images serve.
if [ ! -e "$bin/data" ]; then
  mkdir -p "$bin/data.new"
  cp "$source"/test/images/agnhost/porter/localhost.{crt,key} "$bin/data.new/"
  for site in nautilus kitten; do cp -r "$source/test/images/$site/html" "$bin/data.new/$site"; done
  chmod -R u+w "$bin/data.new"
  mv "$bin/data.new" "$bin/data"
fi
echo "$bin"
