//go:build tools

// Package tools names the program that build.sh makes, so that go.mod pins it.
package tools

import _ "github.com/kubeflow/mpi-operator/cmd/mpi-operator"
