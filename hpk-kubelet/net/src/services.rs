//! A Service and its EndpointSlices as the datapath needs them. Pure.
//!
//! <https://kubernetes.io/docs/reference/networking/virtual-ips/>: ready endpoints; when none is ready, those that still
//! serve while they terminate. One Node stands for the whole cluster, so internalTrafficPolicy Local means all.

use hpk_api::link::{Listener, Protocol, ServiceFacts, ServicePort};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// ClientIP affinity when the Service does not say how long, seconds.
const AFFINITY: u32 = 10_800;

/// Label that names an EndpointSlice's service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The facts; None for a Service without a ClusterIP (headless, ExternalName). `nodes` are the login node's addresses, whose
/// ports NodePort and LoadBalancer use. `place` says where an endpoint is found by the datapath.
pub fn compile<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    nodes: &[IpAddr],
    mut place: impl FnMut(Protocol, SocketAddr) -> Option<SocketAddr>,
) -> Option<ServiceFacts> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let listed = spec.cluster_ips.clone().unwrap_or_default();
    let texts = if listed.is_empty() { spec.cluster_ip.clone().into_iter().collect() } else { listed };
    let cluster_ips: Vec<IpAddr> = texts.iter().filter_map(|t| t.parse().ok()).collect();
    if cluster_ips.is_empty() {
        return None;
    }
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port)) else {
            continue;
        };
        let name = port.name.as_deref().unwrap_or_default();
        let found = endpoints(slices.clone(), name, protocol);
        let endpoints = found.into_iter().filter_map(|e| place(protocol, e)).collect();
        let places = places(service, nodes);
        let mut also: Vec<_> = places.into_iter().flat_map(|node| on_node(service, port, node)).collect();
        also.extend(elsewhere(service).map(|ip| SocketAddr::new(ip, number)).filter(|at| !nodes.contains(&at.ip())));
        ports.push(ServicePort { protocol, port: number, endpoints, also });
    }
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let affinity_seconds = sticky.then(|| seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(AFFINITY));
    Some(ServiceFacts {
        key: key(service.metadata.namespace.as_deref(), service.metadata.name.as_deref()),
        cluster_ips,
        sources: sources(service),
        affinity_seconds,
        ports,
    })
}

/// Who may come by the load balancer's address. The API server has checked them.
fn sources(service: &Service) -> Vec<IpNet> {
    let ranges = service.spec.iter().flat_map(|spec| spec.load_balancer_source_ranges.iter().flatten());
    ranges.filter_map(|range| range.trim().parse().ok()).collect()
}

/// Which of the login node's addresses are the service's: those of its families. Where the node has none of them, its first: what
/// listens there is a relay, and leads to the other family's endpoints just as well.
#[must_use]
pub fn places(service: &Service, nodes: &[IpAddr]) -> Vec<IpAddr> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
    let v4 = families.is_empty() || families.iter().any(|f| f == "IPv4");
    let v6 = families.iter().any(|f| f == "IPv6");
    let of: Vec<IpAddr> = nodes.iter().copied().filter(|ip| if ip.is_ipv4() { v4 } else { v6 }).collect();
    if of.is_empty() { nodes.first().copied().into_iter().collect() } else { of }
}

/// Addresses of the node that lead to a port of a service: its node port, and a load balancer's port.
fn on_node(service: &Service, port: &k8s_openapi::api::core::v1::ServicePort, node: IpAddr) -> Vec<SocketAddr> {
    let own = is_ours(service).then_some(port.port);
    let mut all: Vec<_> = [port.node_port, own]
        .into_iter()
        .flatten()
        .filter_map(|n| u16::try_from(n).ok().filter(|n| *n > 0))
        .map(|n| SocketAddr::new(node, n))
        .collect();
    all.dedup();
    all
}

/// Addresses of a service that some other part of the site carries to a node: externalIPs, and what another load
/// balancer gave.
fn elsewhere(service: &Service) -> impl Iterator<Item = IpAddr> {
    let external = service.spec.iter().flat_map(|s| s.external_ips.iter().flatten());
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|l| l.ingress.iter().flatten()).filter_map(|i| i.ip.as_ref());
    external.chain(ingress).filter_map(|ip| ip.parse().ok())
}

/// A LoadBalancer that no other implementation was asked for.
#[must_use]
pub fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
}

/// What the login node listens on for a service. SCTP is not carried.
#[must_use]
pub fn listeners(facts: &ServiceFacts, nodes: &[IpAddr]) -> Vec<Listener> {
    let ports = facts.ports.iter().filter(|p| p.protocol != Protocol::Sctp);
    let listener = |port: &ServicePort, at: SocketAddr| Listener {
        service: facts.key.clone(),
        protocol: port.protocol,
        at,
        endpoints: of_family(&port.endpoints, at),
        // A node port is no part of the load balancer, as with kube-proxy.
        sources: if at.port() == port.port { facts.sources.clone() } else { Vec::new() },
        affinity_seconds: facts.affinity_seconds,
        held: false,
    };
    ports.flat_map(|p| p.also.iter().filter(|at| nodes.contains(&at.ip())).map(move |at| listener(p, *at))).collect()
}

/// Endpoints of the listener's family, so that a pod with two addresses counts once. The listener is a relay: where
/// there are none, it leads to the other family's just as well.
fn of_family(endpoints: &[SocketAddr], at: SocketAddr) -> Vec<SocketAddr> {
    let same: Vec<_> = endpoints.iter().copied().filter(|e| e.is_ipv4() == at.is_ipv4()).collect();
    if same.is_empty() { endpoints.to_vec() } else { same }
}

/// `<namespace>/<name>`.
#[must_use]
pub fn key(namespace: Option<&str>, name: Option<&str>) -> String {
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// The service that a slice belongs to.
#[must_use]
pub fn owner(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(key(slice.metadata.namespace.as_deref(), Some(name)))
}

fn endpoints<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    name: &str,
    wanted: Protocol,
) -> BTreeSet<SocketAddr> {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let named = slice.ports.iter().flatten().filter(|p| {
            p.name.as_deref().unwrap_or_default() == name && protocol(p.protocol.as_deref()) == Some(wanted)
        });
        for port in named.filter_map(|p| u16::try_from(p.port?).ok()) {
            for endpoint in slice.endpoints.iter().flatten() {
                let (is_ready, is_serving) = endpoint.conditions.as_ref().map_or((true, true), |c| {
                    // Absent means true (ready), and serving follows ready.
                    let ready = c.ready.unwrap_or(true);
                    (ready, c.serving.unwrap_or(ready))
                });
                let addresses = endpoint
                    .addresses
                    .iter()
                    .filter_map(|a| a.parse::<IpAddr>().ok())
                    .map(|ip| SocketAddr::new(ip, port));
                if is_ready {
                    ready.extend(addresses);
                } else if is_serving {
                    serving.extend(addresses);
                }
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
}

/// TCP when not said.
#[must_use]
pub fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nodes() -> Vec<IpAddr> {
        vec!["10.77.0.1".parse().unwrap(), "fd00:77::1".parse().unwrap()]
    }

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s"}, "spec": spec})).unwrap()
    }

    fn slice(ports: serde_json::Value, endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": "s-x", "labels": {SERVICE_NAME: "s"}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints
        }))
        .unwrap()
    }

    fn facts(spec: serde_json::Value, slices: &[EndpointSlice]) -> Option<ServiceFacts> {
        compile(&service(spec), slices.iter(), &nodes(), |_, e| Some(e))
    }

    #[test]
    fn named_ports_meet_their_own_endpoints() {
        let slices = [slice(
            json!([{"name": "a", "port": 8080}, {"name": "b", "port": 53, "protocol": "UDP"}]),
            json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.1"], "conditions": {"ready": true}}]),
        )];
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP"}, {"name": "c", "port": 9}]});
        let f = facts(spec, &slices).unwrap();
        assert_eq!(f.key, "d/s");
        let shown: Vec<_> = f.ports.iter().map(|p| (p.port, p.protocol, p.endpoints.len())).collect();
        assert_eq!(shown, [(80, Protocol::Tcp, 2), (53, Protocol::Udp, 2), (9, Protocol::Tcp, 0)]);
        assert_eq!(f.ports[0].endpoints[0], "10.244.0.1:8080".parse().unwrap());
    }

    #[test]
    fn the_unready_are_left_out_until_none_is_ready() {
        let ports = json!([{"port": 80}]);
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
        let going =
            json!({"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let dead = json!({"addresses": ["10.244.0.4"], "conditions": {"ready": false, "serving": false}});
        let well = json!({"addresses": ["10.244.0.5"], "conditions": {"ready": true}});
        let ips = |endpoints| {
            facts(spec.clone(), &[slice(ports.clone(), endpoints)]).unwrap().ports[0]
                .endpoints
                .iter()
                .map(|e| e.ip().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(ips(json!([going, dead, well])), ["10.244.0.5"]);
        assert_eq!(ips(json!([going, dead])), ["10.244.0.3"]);
        assert!(ips(json!([dead])).is_empty());
    }

    #[test]
    fn without_cluster_ip_there_is_nothing_to_translate() {
        assert_eq!(facts(json!({"clusterIP": "None", "ports": [{"port": 80}]}), &[]), None);
        assert_eq!(facts(json!({"type": "ExternalName", "externalName": "x"}), &[]), None);
        assert_eq!(facts(json!({"ports": [{"port": 80}]}), &[]), None);
    }

    #[test]
    fn ports_of_the_node() {
        let also = |extra: serde_json::Value| {
            let mut spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 8080, "nodePort": 30001}, {"port": 9, "protocol": "SCTP"}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let f = facts(spec, &[]).unwrap();
            let shown: Vec<_> = f.ports[0].also.iter().map(ToString::to_string).collect();
            let heard: Vec<_> = listeners(&f, &nodes()).iter().map(|l| l.at.to_string()).collect();
            (shown, heard)
        };
        let node = vec!["10.77.0.1:30001".to_owned()];
        let both = vec!["10.77.0.1:30001".to_owned(), "10.77.0.1:8080".to_owned()];
        assert_eq!(also(json!({"type": "NodePort"})), (node.clone(), node.clone()));
        assert_eq!(also(json!({"type": "LoadBalancer"})), (both.clone(), both));
        assert_eq!(also(json!({"type": "LoadBalancer", "loadBalancerClass": "x/y"})), (node.clone(), node.clone()));
        let outside = vec!["10.77.0.1:30001".to_owned(), "192.0.2.1:8080".to_owned()];
        assert_eq!(also(json!({"type": "NodePort", "externalIPs": ["192.0.2.1"]})), (outside, node));
        let six = vec!["[fd00:77::1]:30001".to_owned()];
        assert_eq!(also(json!({"type": "NodePort", "ipFamilies": ["IPv6"]})), (six.clone(), six));
        let dual = json!({"type": "NodePort", "ipFamilies": ["IPv6", "IPv4"]});
        let dual_places = vec!["10.77.0.1:30001".to_owned(), "[fd00:77::1]:30001".to_owned()];
        assert_eq!(also(dual.clone()), (dual_places.clone(), dual_places));
        let relayed = places(&service(dual), &["10.77.0.1".parse().unwrap()]);
        assert_eq!(relayed, [IpAddr::from([10, 77, 0, 1])], "a node without IPv6");
    }

    #[test]
    fn source_ranges_are_the_load_balancers_alone() {
        let spec = json!({"clusterIP": "10.96.0.7", "type": "LoadBalancer", "loadBalancerSourceRanges": [" 192.0.2.0/24", "fd00::/8"],
            "ports": [{"port": 8080, "nodePort": 30001, "protocol": "TCP"}]});
        let f = facts(spec, &[]).unwrap();
        let all: Vec<_> = listeners(&f, &nodes()).iter().map(|l| (l.at.port(), l.sources.len())).collect();
        assert_eq!(all, [(30_001, 0), (8080, 2)]);
    }

    #[test]
    fn affinity() {
        let with = |extra: serde_json::Value| {
            let mut spec = json!({"clusterIP": "10.96.0.7", "ports": []});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            facts(spec, &[]).unwrap().affinity_seconds
        };
        assert_eq!(with(json!({})), None);
        assert_eq!(with(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
        assert_eq!(
            with(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}})),
            Some(5)
        );
    }
}
