//! LoadBalancer services: the login node is the balancer, so their status names its addresses, and ports of theirs that it does
//! not listen on. And what users should hear of ports that lead nowhere.
//!
//! The listeners themselves are the control plane's member's; which there are, [`crate::services`] says.

use crate::services::{self, is_ours};
use crate::world::World;
use hpk_api::link::{MEMBER, NetQuestion, NotListening, Protocol};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, ObjectReference, PortStatus, Service};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;

/// Tries of a status that the API server does not take.
const TRIES: u32 = 5;
/// Before the second try; doubled each time.
const AGAIN: Duration = Duration::from_secs(1);

/// A port of a Service that is not listened on: the event's reason, and the port's error in the Service's status.
const NOT_AVAILABLE: &str = "PortNotAvailable";

/// Upstream's, of a LoadBalancer that somebody looks after.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Something to tell about an object, as an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub about: ObjectReference,
    /// Warning instead of Normal.
    pub warning: bool,
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Where a service is not listened for, and why.
type Failed = BTreeMap<(Protocol, SocketAddr), String>;

/// Gives LoadBalancer services their addresses.
pub(crate) struct Balancer {
    client: Client,
    nodes: Vec<IpAddr>,
    notices: mpsc::UnboundedSender<Notice>,
    /// UIDs of services of which it was said that SCTP is not carried.
    warned: HashSet<String>,
    /// By service: the member's newest word. None: it has not spoken since this kubelet began.
    failed: Option<BTreeMap<String, Failed>>,
}

impl Balancer {
    /// `nodes`: the addresses of the login node.
    pub(crate) fn new(client: Client, nodes: Vec<IpAddr>, notices: mpsc::UnboundedSender<Notice>) -> Self {
        Self { client, nodes, notices, warned: HashSet::new(), failed: None }
    }

    /// A Service was made or changed (`live`) or is gone.
    pub(crate) fn service(&mut self, service: &Service, live: bool) {
        let uid = service.uid().unwrap_or_default();
        if !live {
            self.warned.remove(&uid);
            return;
        }
        if let Some(message) = not_carried(service)
            && self.warned.insert(uid)
        {
            self.tell(service, true, "ProtocolNotSupported", message);
        }
        self.judge(service);
    }

    /// Brings a Service's status and finalizer up to date. The member's listeners follow the objects: nothing else is to be
    /// cleared up, so nothing keeps the finalizer of one that is being deleted.
    fn judge(&self, service: &Service) {
        if let Some(finalizers) = finalizers(service) {
            let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": service.resource_version()}});
            tokio::spawn(finalize(self.client.clone(), service.clone(), patch));
        }
        let key = services::key(service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        let none = Failed::new();
        let failed = self.failed.as_ref().map(|all| all.get(&key).unwrap_or(&none));
        let Some(wanted) = ingress(service, &self.nodes, failed) else { return };
        if given(service).is_empty() {
            let all = self.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            self.tell(service, false, "EnsuredLoadBalancer", format!("the login node, {all}, listens"));
        }
        let status = json!({"status": {"loadBalancer": {"ingress": wanted}}});
        tokio::spawn(post(self.client.clone(), service.clone(), status));
    }

    /// What the member, or the pod `uid`, says that is no question.
    pub(crate) fn heard(&mut self, world: &World, uid: &str, question: &NetQuestion) {
        match question {
            NetQuestion::NotListening { at, protocol, message } => {
                let Some(pod) = world.known_pod(uid) else { return };
                tracing::warn!(uid, %at, ?protocol, %message, "no listener");
                let about = ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name.clone()),
                    namespace: Some(pod.namespace.clone()),
                    uid: Some(uid.to_owned()),
                    ..ObjectReference::default()
                };
                let message = text(*protocol, *at, message);
                let _ = self.notices.send(Notice { about, warning: true, reason: "HostPortNotAvailable", message });
            }
            // Services' ports are the member's alone.
            NetQuestion::Listened { failed, .. } if uid == MEMBER => self.listened(world, failed),
            NetQuestion::Listened { .. } | NetQuestion::Peer { .. } | NetQuestion::PeerByKey { .. } => {}
        }
    }

    fn listened(&mut self, world: &World, failed: &[NotListening]) {
        let mut now = BTreeMap::<String, Failed>::new();
        for f in failed {
            now.entry(f.service.clone()).or_default().insert((f.protocol, f.at), f.message.clone());
        }
        let before = self.failed.replace(now.clone()).unwrap_or_default();
        let keys: HashSet<&String> = before.keys().chain(now.keys()).collect();
        for service in keys.into_iter().filter_map(|key| world.known_service(key)) {
            let key = services::key(service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
            for ((protocol, at), message) in now.get(&key).into_iter().flatten() {
                if before.get(&key).and_then(|f| f.get(&(*protocol, *at))) != Some(message) {
                    tracing::warn!(service = %key, %at, ?protocol, %message, "no listener");
                    self.tell(service, true, NOT_AVAILABLE, text(*protocol, *at, message));
                }
            }
        }
        // Those too that an earlier kubelet had heard of.
        for service in world.balanced() {
            self.judge(service);
        }
    }

    fn tell(&self, service: &Service, warning: bool, reason: &'static str, message: String) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            uid: service.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let _ = self.notices.send(Notice { about, warning, reason, message });
    }
}

/// The finalizers that a Service should have, if they are not those that it has.
fn finalizers(service: &Service) -> Option<Vec<String>> {
    let mut all = service.metadata.finalizers.clone().unwrap_or_default();
    let has = all.iter().any(|f| f == FINALIZER);
    let wants = is_ours(service) && service.metadata.deletion_timestamp.is_none();
    match (has, wants) {
        (false, true) => all.push(FINALIZER.to_owned()),
        // Another implementation's, which removes its own.
        (true, false) if service.spec.as_ref().is_some_and(|s| s.load_balancer_class.is_some()) => return None,
        (true, false) => all.retain(|f| f != FINALIZER),
        _ => return None,
    }
    Some(all)
}

/// An object that has changed meanwhile is judged again when its change is heard.
async fn finalize(client: Client, service: Service, patch: Value) {
    let api: Api<Service> = Api::namespaced(client, &service.namespace().unwrap_or_default());
    match api.patch(&service.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => {}
        Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {}
        Err(error) => tracing::warn!(service = %service.name_any(), %error, "finalizer not set or taken away"),
    }
}

fn text(protocol: Protocol, at: SocketAddr, message: &str) -> String {
    format!("{} {at}: {message}", format!("{protocol:?}").to_uppercase())
}

fn given(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    status.and_then(|l| l.ingress.as_deref()).unwrap_or_default()
}

/// The ingress that a LoadBalancer should have, if that is not what it has. What somebody else gave stays. `failed`: where it is
/// not listened on; None: that is not known, and what the status says of it stays.
fn ingress(service: &Service, nodes: &[IpAddr], failed: Option<&Failed>) -> Option<Vec<LoadBalancerIngress>> {
    let given = given(service);
    let is_own = |i: &LoadBalancerIngress| {
        i.ip.as_deref().and_then(|ip| ip.parse().ok()).is_some_and(|ip: IpAddr| nodes.contains(&ip))
    };
    if !is_ours(service) || service.metadata.deletion_timestamp.is_some() || !given.iter().all(is_own) {
        return None;
    }
    let wanted: Vec<LoadBalancerIngress> = services::places(service, nodes)
        .into_iter()
        .map(|ip| {
            let text = ip.to_string();
            let ports = match failed {
                Some(failed) => ports(service, ip, failed),
                None => given.iter().find(|i| i.ip.as_ref() == Some(&text)).and_then(|i| i.ports.clone()),
            };
            LoadBalancerIngress { ip: Some(text), ip_mode: Some("VIP".to_owned()), ports, ..Default::default() }
        })
        .collect();
    (wanted != given).then_some(wanted)
}

/// The ports of an address, if one of them has an error: all or none are to be named.
fn ports(service: &Service, ip: IpAddr, failed: &Failed) -> Option<Vec<PortStatus>> {
    let all = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let list: Vec<PortStatus> = all
        .map(|port| {
            let at = u16::try_from(port.port).ok().map(|number| SocketAddr::new(ip, number));
            let key = services::protocol(port.protocol.as_deref()).zip(at);
            PortStatus {
                port: port.port,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                error: key.and_then(|key| failed.get(&key)).map(|_| NOT_AVAILABLE.to_owned()),
            }
        })
        .collect();
    list.iter().any(|port| port.error.is_some()).then_some(list)
}

/// What of a service has no effect.
fn not_carried(service: &Service) -> Option<String> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let sctp: Vec<String> =
        ports.filter(|p| p.protocol.as_deref() == Some("SCTP")).map(|p| p.port.to_string()).collect();
    let has_address = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).is_some_and(|ip| ip != "None");
    (!sctp.is_empty() && has_address).then(|| {
        format!(
            "port {}: SCTP is not carried by HPK's services: use TCP or UDP, or a headless service",
            sctp.join(", ")
        )
    })
}

/// The service's next change or the next start tries anew.
async fn post(client: Client, service: Service, status: Value) {
    let namespace = service.namespace().unwrap_or_default();
    let api: Api<Service> = Api::namespaced(client, &namespace);
    let mut pause = AGAIN;
    for _ in 0..TRIES {
        match api.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await {
            Ok(_) => return,
            Err(kube::Error::Api(answer)) if answer.code == 404 => return,
            Err(error) => {
                let key = services::key(Some(&namespace), service.metadata.name.as_deref());
                tracing::warn!(service = %key, %error, "load balancer's status not posted");
            }
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value, status: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s"}, "spec": spec, "status": status}))
            .unwrap()
    }

    fn nodes() -> Vec<IpAddr> {
        vec!["10.77.0.1".parse().unwrap(), "fd00:77::1".parse().unwrap()]
    }

    fn found(service: &Service, failed: Option<&Failed>) -> Option<Value> {
        ingress(service, &nodes(), failed).map(|list| serde_json::to_value(list).unwrap())
    }

    #[test]
    fn an_address_is_given_once() {
        let of = |spec, given| found(&service(spec, given), None);
        let balanced = json!({"type": "LoadBalancer"});
        let own = json!([{"ip": "10.77.0.1", "ipMode": "VIP"}]);
        assert_eq!(of(balanced.clone(), json!({})), Some(own.clone()));
        assert_eq!(of(balanced.clone(), json!({"loadBalancer": {"ingress": own}})), None);
        let both = json!({"type": "LoadBalancer", "ipFamilies": ["IPv4", "IPv6"]});
        let [v4, v6] = [json!({"ip": "10.77.0.1", "ipMode": "VIP"}), json!({"ip": "fd00:77::1", "ipMode": "VIP"})];
        assert_eq!(of(both, json!({"loadBalancer": {"ingress": own}})), Some(json!([v4, v6])));
        assert_eq!(of(balanced, json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})), None, "another's stays");
        assert_eq!(of(json!({"type": "LoadBalancer", "loadBalancerClass": "x/y"}), json!({})), None);
        assert_eq!(of(json!({"type": "NodePort"}), json!({})), None);
    }

    #[test]
    fn a_port_that_is_not_listened_on_has_an_error_and_the_others_are_named() {
        let spec =
            json!({"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 8080}, {"port": 8080, "protocol": "UDP"}]});
        let failed = Failed::from([((Protocol::Tcp, "10.77.0.1:80".parse().unwrap()), "an ordinary user".to_owned())]);
        let wanted = json!([{"ip": "10.77.0.1", "ipMode": "VIP", "ports": [
            {"port": 80, "protocol": "TCP", "error": "PortNotAvailable"},
            {"port": 8080, "protocol": "TCP"},
            {"port": 8080, "protocol": "UDP"},
        ]}]);
        assert_eq!(found(&service(spec.clone(), json!({})), Some(&failed)), Some(wanted.clone()));
        let has = service(spec, json!({"loadBalancer": {"ingress": wanted}}));
        assert_eq!(found(&has, Some(&failed)), None, "it has it already");
        assert_eq!(found(&has, None), None, "what an earlier kubelet heard stays until the member speaks");
        let cleared = Some(json!([{"ip": "10.77.0.1", "ipMode": "VIP"}]));
        assert_eq!(found(&has, Some(&Failed::new())), cleared, "the port was freed");
    }

    #[test]
    fn a_load_balancer_has_its_finalizer_until_it_goes() {
        let of = |spec: Value, metadata: Value| {
            finalizers(&serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
        };
        let balanced = json!({"type": "LoadBalancer"});
        assert_eq!(of(balanced.clone(), json!({"finalizers": ["x/y"]})).unwrap(), ["x/y", FINALIZER]);
        assert_eq!(of(balanced.clone(), json!({"finalizers": [FINALIZER]})), None);
        assert_eq!(of(json!({"type": "ClusterIP"}), json!({"finalizers": [FINALIZER, "x/y"]})).unwrap(), ["x/y"]);
        let deleted = json!({"finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert!(of(balanced, deleted).unwrap().is_empty());
        let other = json!({"type": "LoadBalancer", "loadBalancerClass": "x/y"});
        assert_eq!(of(other, json!({"finalizers": [FINALIZER]})), None, "another implementation's");
    }

    #[test]
    fn sctp_is_refused_aloud() {
        let of = |ip: &str, protocol: &str| {
            not_carried(&service(json!({"clusterIP": ip, "ports": [{"port": 7, "protocol": protocol}]}), json!({})))
        };
        assert!(of("10.96.0.9", "SCTP").unwrap().contains("port 7"));
        assert_eq!(of("10.96.0.9", "UDP"), None);
        assert_eq!(of("None", "SCTP"), None, "headless: nothing is translated");
    }
}
