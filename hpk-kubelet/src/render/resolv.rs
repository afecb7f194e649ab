//! Content of a pod's /etc/resolv.conf, by its dnsPolicy and dnsConfig.

use k8s_openapi::api::core::v1::Pod;

/// Limits of the resolver and of Kubernetes' validation.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// The lines of a resolv.conf that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    /// Addresses in order.
    pub nameservers: Vec<String>,
    /// Search domains in order.
    pub searches: Vec<String>,
    /// `name[:value]` in order.
    pub options: Vec<String>,
}

/// What a pod is given and what had to be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub text: String,
    /// Texts for `DNSConfigForming` events.
    pub warnings: Vec<String>,
}

impl Resolv {
    /// Reads a resolv.conf; unknown lines are skipped, the last `search` wins as in resolv.conf(5).
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut result = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => result.nameservers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => {
                    // A trailing dot means the same domain; the root alone says nothing.
                    result.searches = words
                        .map(|w| if w.len() > 1 { w.trim_end_matches('.') } else { w })
                        .map(str::to_owned)
                        .collect();
                }
                Some("options") => result.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        result
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The file for this pod. `node` is the node's own resolv.conf.
#[must_use]
pub(crate) fn render(pod: &Pod, cluster_dns: &str, cluster_domain: &str, node: &Resolv) -> Rendered {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let host_network = spec.host_network == Some(true);
    let mut resolv = match (spec.dns_policy.as_deref().unwrap_or("ClusterFirst"), host_network) {
        ("None", _) => Resolv::default(),
        ("ClusterFirst", false) | ("ClusterFirstWithHostNet", _) => {
            let own = [
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            Resolv {
                nameservers: vec![cluster_dns.to_owned()],
                searches: unique(own.into_iter().chain(node.searches.iter().cloned())),
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => node.clone(),
    };
    if let Some(config) = spec.dns_config {
        resolv.nameservers = unique(resolv.nameservers.into_iter().chain(config.nameservers.unwrap_or_default()));
        resolv.searches = unique(resolv.searches.into_iter().chain(config.searches.unwrap_or_default()));
        for option in config.options.unwrap_or_default() {
            let Some(name) = option.name else { continue };
            let text = match option.value.filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            };
            let same = |old: &String| old.split(':').next() == Some(name.as_str());
            match resolv.options.iter_mut().find(|old| same(old)) {
                Some(old) => *old = text,
                None => resolv.options.push(text),
            }
        }
    }
    let warnings = limit(&mut resolv);
    Rendered { text: resolv.text(), warnings }
}

fn limit(resolv: &mut Resolv) -> Vec<String> {
    let mut warnings = Vec::new();
    if resolv.nameservers.len() > MAX_NAMESERVERS {
        resolv.nameservers.truncate(MAX_NAMESERVERS);
        warnings.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            resolv.nameservers.join(" ")
        ));
    }
    let before = resolv.searches.len();
    resolv.searches.truncate(MAX_SEARCHES);
    while resolv.searches.join(" ").len() > MAX_SEARCH_CHARS {
        resolv.searches.pop();
    }
    if resolv.searches.len() < before {
        warnings.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            resolv.searches.join(" ")
        ));
    }
    warnings
}

fn unique(items: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    items.into_iter().filter(|item| seen.insert(item.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(spec: serde_json::Value) -> String {
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).expect("pod");
        let node = Resolv::parse("# x\nnameserver 8.8.8.8\nsearch corp.example.\noptions rotate\n");
        render(&pod, "10.96.0.10", "cluster.local", &node).text
    }

    #[test]
    fn policies() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n";
        let node = "search corp.example\nnameserver 8.8.8.8\noptions rotate\n";
        for (spec, text) in [
            (json!({"containers": []}), cluster),
            (json!({"containers": [], "dnsPolicy": "ClusterFirst", "hostNetwork": true}), node),
            (json!({"containers": [], "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), cluster),
            (json!({"containers": [], "dnsPolicy": "Default"}), node),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n",
            ),
            (
                json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}], "searches": ["x.y"]}}),
                "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example x.y\nnameserver 10.96.0.10\noptions ndots:1\n",
            ),
        ] {
            assert_eq!(file(spec), text);
        }
    }

    #[test]
    fn limits_are_told() {
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}}}))
            .expect("pod");
        let rendered = render(&pod, "", "", &Resolv::default());
        assert_eq!(rendered.warnings.len(), 1);
        assert!(!rendered.text.contains("1.1.1.4"));
    }
}
