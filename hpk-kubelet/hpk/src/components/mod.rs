//! The control plane's programs: what each is started with, what it waits for, how it is known to serve.
//! Pure: [`all`] is a function of the cluster's decisions; [`crate::supervise`] runs what it returns.
//!
//! ```text
//!  etcd-data (once) ◀─ etcd ◀─┬─ kube-apiserver ◀─┬─ kube-controller-manager
//!                             │       │            ├─ kube-scheduler
//!                             │       ▼            └─ bootstrap (once) ◀─┬─ coredns
//!                             └─ etcd-snapshots                          ├─ hpk-kubelet
//!                                                                        └─ hpk-netns-member
//! ```
//! An arrow points at what must be ready before. Stopping goes the other way. etcd-snapshots is there only where etcd's data
//! is not in HPK_HOME ([`crate::state`]).

mod apiserver;
mod controllers;
mod dns;
mod etcd;
pub(crate) mod image;
mod node;
pub(crate) mod probe;

use crate::decide::ControlPlane;
use hpk_api::cluster::ClusterConfig;
use hpk_layout::Home;
use hpk_layout::pki;
pub(crate) use probe::Probe;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything the command lines are made of.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub home: Home,
    /// `cluster.json`.
    pub cluster: ClusterConfig,
    /// `control-plane.json`.
    pub control_plane: ControlPlane,
}

impl Layout {
    fn certificate(&self, name: &str) -> String {
        pki::certificate(&self.home.pki(), name).display().to_string()
    }
    fn key(&self, name: &str) -> String {
        pki::key(&self.home.pki(), name).display().to_string()
    }
    fn public_key(&self, name: &str) -> String {
        pki::public_key(&self.home.pki(), name).display().to_string()
    }
    fn kubeconfig(&self, name: &str) -> String {
        pki::kubeconfig(&self.home.pki(), name).display().to_string()
    }
    /// etcd's data folder.
    pub(crate) fn etcd_data(&self) -> &Path {
        &self.control_plane.etcd_data
    }
    fn config(&self, file: &str) -> String {
        self.home.config().join(file).display().to_string()
    }
}

/// Whether a program runs for ever or to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Restarted whenever it ends.
    Service,
    /// Ready when it has ended with 0; tried again otherwise.
    Once,
}

/// One program, ready to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Component {
    /// Its name, also of its log file.
    pub name: &'static str,
    /// Names of those that must be ready before it starts.
    pub needs: &'static [&'static str],
    /// For ever or to its end.
    pub kind: Kind,
    /// What is executed, absolute.
    pub program: PathBuf,
    pub args: Vec<String>,
    /// How to know that it serves.
    pub probe: Probe,
    /// Time between TERM and KILL.
    pub grace: Duration,
}

/// Generated configuration files: name in HPK_HOME/config, content.
#[must_use]
pub(crate) fn config_files(layout: &Layout) -> Vec<(&'static str, String)> {
    let mut files = vec![
        ("scheduler.yaml", controllers::scheduler_config(layout)),
        ("Corefile", dns::corefile(layout)),
        (dns::NOTHING.0, dns::NOTHING.1.to_owned()),
    ];
    files.extend(apiserver::egress_config(layout).map(|text| ("egress.yaml", text)));
    files
}

/// All components in the order of their start. `hpk` is this program's own executable.
#[must_use]
pub(crate) fn all(layout: &Layout, hpk: &Path) -> Vec<Component> {
    let mut list = vec![etcd::data(layout, hpk), etcd::component(layout)];
    list.extend(etcd::snapshots(layout, hpk));
    list.extend([
        apiserver::component(layout),
        controllers::controller_manager(layout),
        controllers::scheduler(layout),
        node::bootstrap(layout, hpk),
        dns::component(layout),
    ]);
    list.extend(node::kubelet(layout));
    list.extend(node::member(layout));
    list
}

/// `--key=value` for each pair.
fn flags<const N: usize>(pairs: [(&str, String); N]) -> Vec<String> {
    pairs.into_iter().map(|(k, v)| format!("--{k}={v}")).collect()
}

/// A Go duration in whole seconds.
fn go_seconds(d: Duration) -> String {
    format!("{}s", d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Programs;
    use crate::decide::tests::layout;
    use std::collections::HashSet;

    fn arg<'a>(c: &'a Component, key: &str) -> Option<&'a str> {
        let prefix = format!("--{key}=");
        c.args.iter().find_map(|a| a.strip_prefix(prefix.as_str()))
    }

    fn find<'a>(list: &'a [Component], name: &str) -> &'a Component {
        list.iter().find(|c| c.name == name).unwrap()
    }

    #[test]
    fn every_need_comes_earlier_in_the_list() {
        let list = all(&layout(), Path::new("/opt/hpk"));
        let mut seen = HashSet::new();
        for c in &list {
            for need in c.needs {
                assert!(seen.contains(need), "{} needs {need} before it", c.name);
            }
            assert!(seen.insert(c.name));
        }
        assert_eq!(list[1].name, "etcd");
    }

    #[test]
    fn the_last_snapshot_is_between_the_api_servers_end_and_etcds() {
        let mut l = layout();
        let list = all(&l, Path::new("/opt/hpk"));
        assert!(!list.iter().any(|c| c.name == "etcd-snapshots"), "the data is in HPK_HOME");
        l.control_plane.etcd_base = Some("/var/tmp".into());
        l.control_plane.etcd_data = "/var/tmp/hpk-1000/etcd-1".into();
        let list = all(&l, Path::new("/opt/hpk"));
        assert!(find(&list, "kube-apiserver").needs.contains(&"etcd-snapshots"));
        assert_eq!(find(&list, "etcd-snapshots").needs, ["etcd"]);
        assert_eq!(arg(find(&list, "etcd"), "data-dir"), Some("/var/tmp/hpk-1000/etcd-1"));
    }

    #[test]
    fn nothing_answers_a_stranger() {
        let list = all(&layout(), Path::new("/opt/hpk"));
        let etcd = find(&list, "etcd");
        assert_eq!(arg(etcd, "client-cert-auth"), Some("true"));
        assert_eq!(arg(etcd, "peer-client-cert-auth"), Some("true"));
        assert!(arg(etcd, "listen-client-urls").unwrap().starts_with("https://127.0.0.1:"));
        assert!(arg(etcd, "listen-metrics-urls").is_none(), "metrics would be served without certificates");
        let api = find(&list, "kube-apiserver");
        assert_eq!(arg(api, "anonymous-auth"), Some("false"));
        assert_eq!(arg(api, "authorization-mode"), Some("Node,RBAC"));
        for name in ["kube-controller-manager", "kube-scheduler"] {
            assert_eq!(arg(find(&list, name), "bind-address"), Some("127.0.0.1"), "{name}");
        }
    }

    #[test]
    fn no_flag_is_given_twice() {
        for c in all(&layout(), Path::new("/opt/hpk")) {
            let keys: Vec<_> =
                c.args.iter().filter_map(|a| a.strip_prefix("--")).filter_map(|a| a.split_once('=')).collect();
            let set: HashSet<_> = keys.iter().map(|(k, _)| k).collect();
            assert_eq!(set.len(), keys.len(), "{}: {:?}", c.name, c.args);
        }
    }

    #[test]
    fn an_image_wraps_the_control_plane_but_not_the_kubelet() {
        let mut l = layout();
        l.control_plane.programs =
            Programs::Image { apptainer: "/usr/bin/apptainer".into(), image: "/opt/cp.sif".into() };
        let list = all(&l, Path::new("/opt/hpk"));
        for c in &list {
            let wrapped = c.program == Path::new("/usr/bin/apptainer");
            assert_eq!(
                wrapped,
                !["bootstrap", "etcd-data", "hpk-kubelet", "hpk-netns-member"].contains(&c.name),
                "{}",
                c.name
            );
        }
        let etcd = find(&list, "etcd");
        let image = etcd.args.iter().position(|a| a == "/opt/cp.sif").unwrap();
        assert_eq!(etcd.args[image + 1], "/bin/etcd");
        l.control_plane.programs = Programs::Folder { path: "/opt/k8s".into() };
        assert_eq!(find(&all(&l, Path::new("/opt/hpk")), "etcd").program, Path::new("/opt/k8s/etcd"));
    }

    #[test]
    fn the_scheduler_leaves_resources_to_slurm() {
        let text = controllers::scheduler_config(&layout());
        assert!(text.contains("disabled:\n      - name: NodeResourcesBalancedAllocation\n"), "{text}");
        // Licences and the like are counted, what Slurm has is not.
        assert!(text.contains("ignoredResourceGroups: [nvidia.com, amd.com, gpu.intel.com, slurm.hpk.io]\n"), "{text}");
    }

    #[test]
    fn the_way_to_pods_leads_through_the_kubelet() {
        let mut l = layout();
        let list = all(&l, Path::new("/opt/hpk"));
        let socket = arg(find(&list, "hpk-kubelet"), "egress").unwrap();
        let config = apiserver::egress_config(&l).unwrap();
        assert!(config.contains(&format!("udsName: \"{socket}\"")), "{config}");
        assert!(arg(find(&list, "kube-apiserver"), "egress-selector-config-file").is_some());
        // Without a kubelet or a socket it dials by itself.
        l.control_plane.kubelet = None;
        assert_eq!(arg(find(&all(&l, Path::new("/opt/hpk")), "kube-apiserver"), "egress-selector-config-file"), None);
    }

    #[test]
    fn names_outside_go_where_the_login_node_asks() {
        let mut l = layout();
        assert!(!dns::corefile(&l).contains("forward"), "no name server: nothing to forward to");
        l.control_plane.nameservers = vec!["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()];
        let text = dns::corefile(&l);
        assert!(text.contains("forward . 10.0.0.53:53 [fd00::53]:53"), "{text}");
        assert!(text.contains("bind 10.77.0.1"), "{text}");
        assert!(!text.contains("nothing.zone"), "{text}");
    }

    #[test]
    fn without_a_name_server_an_unknown_name_does_not_exist() {
        let text = dns::corefile(&layout());
        assert!(text.contains("\n    file /home/alice/.hpk/config/nothing.zone .\n"), "{text}");
        assert!(config_files(&layout()).iter().any(|(name, _)| *name == "nothing.zone"));
    }

    #[test]
    fn what_changes_in_a_moment_is_not_cached() {
        let text = dns::corefile(&layout());
        let cache =
            "    cache 30 {\n        disable success cluster.local\n        disable denial cluster.local\n    }\n";
        assert!(text.contains(cache), "{text}");
    }

    #[test]
    fn only_our_own_servers_answer_the_probes() {
        let l = layout();
        let text = dns::corefile(&l);
        for c in all(&l, Path::new("/opt/hpk")) {
            match &c.probe {
                Probe::None => assert_eq!(c.kind, Kind::Once, "{}", c.name),
                Probe::Says => assert_eq!(c.name, "hpk-netns-member"),
                // Asked with our authority's certificate for this address.
                Probe::Https { .. } => {}
                Probe::Dns { names, .. } => {
                    let (name, ip) = names.last().unwrap();
                    assert!(text.contains(&format!("        {ip} {name}\n")), "{text}");
                    assert_eq!(*name, l.control_plane.dns_sign.name);
                }
            }
        }
    }

    #[test]
    fn servers_share_their_ports_with_the_supervisor_that_holds_them() {
        let list = all(&layout(), Path::new("/opt/hpk"));
        assert_eq!(arg(find(&list, "etcd"), "socket-reuse-port"), Some("true"));
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            assert_eq!(arg(find(&list, name), "permit-port-sharing"), Some("true"), "{name}");
        }
    }
}
