//! Links between pods and the kubelet: what a leaked or stale credential opens.
