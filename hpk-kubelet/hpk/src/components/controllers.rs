//! kube-controller-manager and kube-scheduler: on the loopback address, for callers with a certificate.

use super::probe::{Credentials, Probe};
use super::{Component, Kind, Layout, flags, go_seconds, image};
use crate::gates;
use hpk_layout::pki;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The Node is called NotReady when its Lease is this old. Kubernetes' 50 s would take the endpoints of all
/// services away whenever the login node is busy for a minute (docs/adr/0006-node-monitoring.md).
const NODE_MONITOR_GRACE: Duration = Duration::from_secs(300);

pub(super) fn controller_manager(l: &Layout) -> Component {
    let kubeconfig = l.kubeconfig(pki::CONTROLLER_MANAGER);
    let port = l.control_plane.ports.controller_manager;
    let mut args = flags([
        ("kubeconfig", kubeconfig.clone()),
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig),
        ("bind-address", "127.0.0.1".into()),
        ("secure-port", port.to_string()),
        ("permit-port-sharing", "true".into()),
        ("tls-cert-file", l.certificate(pki::CONTROLLER_MANAGER_SERVER)),
        ("tls-private-key-file", l.key(pki::CONTROLLER_MANAGER_SERVER)),
        ("client-ca-file", l.certificate(pki::CA)),
        ("requestheader-client-ca-file", l.certificate(pki::FRONT_PROXY_CA)),
        ("profiling", "false".into()),
        // The only one there can be: HPK_HOME is locked.
        ("leader-elect", "false".into()),
        ("cluster-name", l.cluster.cluster_name.clone()),
        ("controllers", "*".into()),
        // Kubernetes' 20 a second are for many clients of one API server: a hundred claims would take half a minute.
        ("kube-api-qps", "200".into()),
        ("kube-api-burst", "400".into()),
        ("use-service-account-credentials", "true".into()),
        ("service-account-private-key-file", l.key(pki::SERVICE_ACCOUNTS)),
        ("root-ca-file", l.certificate(pki::CA)),
        ("cluster-signing-cert-file", l.certificate(pki::CA)),
        ("cluster-signing-key-file", l.key(pki::CA)),
        // Whatever is in it is run: a folder of ours, and empty.
        ("flex-volume-plugin-dir", l.home.flexvolume().display().to_string()),
        // Pod addresses are the kubelet's to give.
        ("allocate-node-cidrs", "false".into()),
        ("service-cluster-ip-range", l.cluster.service_cidr.clone()),
        ("node-monitor-grace-period", go_seconds(NODE_MONITOR_GRACE)),
    ]);
    args.extend(gates::arguments(&l.cluster));
    let (program, args) = image::command(l, "kube-controller-manager", args, &[]);
    service(l, "kube-controller-manager", program, args, port)
}

pub(super) fn scheduler(l: &Layout) -> Component {
    let kubeconfig = l.kubeconfig(pki::SCHEDULER);
    let port = l.control_plane.ports.scheduler;
    let mut args = flags([
        ("config", l.config("scheduler.yaml")),
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig),
        ("bind-address", "127.0.0.1".into()),
        ("secure-port", port.to_string()),
        ("permit-port-sharing", "true".into()),
        ("tls-cert-file", l.certificate(pki::SCHEDULER_SERVER)),
        ("tls-private-key-file", l.key(pki::SCHEDULER_SERVER)),
        ("client-ca-file", l.certificate(pki::CA)),
        ("requestheader-client-ca-file", l.certificate(pki::FRONT_PROXY_CA)),
    ]);
    args.extend(gates::arguments(&l.cluster));
    let (program, args) = image::command(l, "kube-scheduler", args, &[]);
    service(l, "kube-scheduler", program, args, port)
}

/// Extended resources that are Slurm's: groups of what the kubelet makes of its generic resources.
const SLURMS: [&str; 4] = ["nvidia.com", "amd.com", "gpu.intel.com", "slurm.hpk.io"];

/// Slurm decides whether and where its resources are free; a pod that fits nowhere now is a job that waits. So Nodes have no
/// bound of CPUs and memory (hpk-kubelet's `api/node`), and generic resources are left out. Extended resources of others are
/// counted here, and preempted for. Everything else that the scheduler looks at (affinity, taints, spreading, volumes, gates)
/// stays on.
pub(super) fn scheduler_config(l: &Layout) -> String {
    let groups = SLURMS.join(", ");
    let kubeconfig = serde_json::Value::from(l.kubeconfig(pki::SCHEDULER));
    format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\n\
         kind: KubeSchedulerConfiguration\n\
         clientConnection:\n\
         \x20 kubeconfig: {kubeconfig}\n\
         \x20 qps: 200\n\
         \x20 burst: 400\n\
         enableProfiling: false\n\
         leaderElection:\n\
         \x20 leaderElect: false\n\
         profiles:\n\
         - schedulerName: default-scheduler\n\
         \x20 plugins:\n\
         \x20   multiPoint:\n\
         \x20     disabled:\n\
         \x20     - name: NodeResourcesBalancedAllocation\n\
         \x20 pluginConfig:\n\
         \x20 - name: NodeResourcesFit\n\
         \x20   args:\n\
         \x20     apiVersion: kubescheduler.config.k8s.io/v1\n\
         \x20     kind: NodeResourcesFitArgs\n\
         \x20     ignoredResourceGroups: [{groups}]\n"
    )
}

fn service(l: &Layout, name: &'static str, program: std::path::PathBuf, args: Vec<String>, port: u16) -> Component {
    Component {
        name,
        needs: &["kube-apiserver"],
        kind: Kind::Service,
        program,
        args,
        probe: Probe::Https {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            path: "/healthz".into(),
            credentials: Credentials::new(l, "ca", "admin"),
        },
        grace: Duration::from_secs(10),
    }
}
