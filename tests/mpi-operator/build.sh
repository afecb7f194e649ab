#!/bin/bash
# Builds Kubeflow's MPI operator, unmodified, from its pinned Go module. Prints the folder of the product, which holds the
# program and the CustomResourceDefinition, as the last line. It is kept in $HPK_CACHE/mpi-operator-<key>, the key being
# the content of what decides it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../images/lib.sh"
command -v go >/dev/null || die "no go command: install Go 1.26 or later"
out=$HPK_CACHE/mpi-operator-$(key_of "$here"/{build.sh,main.go,go.mod,go.sum})
locked "$out"
if [ ! -x "$out/mpi-operator" ]; then
  phase "building mpi-operator"
  (cd "$here" && CGO_ENABLED=0 nice go build -trimpath -ldflags "-s -w" -o "$out/.new" \
    github.com/kubeflow/mpi-operator/cmd/mpi-operator)
  module=$(cd "$here" && go list -m -f '{{.Dir}}' github.com/kubeflow/mpi-operator)
  install -m 644 "$module/manifests/base/kubeflow.org_mpijobs.yaml" "$out/mpijobs.yaml"
  mv "$out/.new" "$out/mpi-operator"
fi
echo "$out"
