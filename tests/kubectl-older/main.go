// kubectl one minor version before the control plane's: an older client must be served as well. The main function is
// that of k8s.io/kubernetes/cmd/kubectl; the client itself is k8s.io/kubectl, unmodified.
package main

import (
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	_ "k8s.io/client-go/plugin/pkg/client/auth"
)

func main() {
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
