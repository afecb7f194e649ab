// CoreDNS with the plug-ins that HPK's Corefile names (hpk-kubelet/hpk/src/components/dns.rs), as CoreDNS' own plugin.cfg
// would choose them. All plug-ins together are twice as large: clients of clouds, which no Corefile of HPK's asks for.
package main

import (
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
)

func main() {
	coremain.Run()
}
