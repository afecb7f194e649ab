//! LoadBalancer services: the login node is the balancer, so their status names its address. And what users should
//! hear of ports that lead nowhere.
//!
//! The listeners themselves are the control plane's member's; which there are, [`crate::services`] says.

use crate::services::{self, is_ours};
use crate::world::World;
use hpk_api::link::{MEMBER, NetQuestion};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;

/// Tries of a status that the API server does not take.
const TRIES: u32 = 5;
/// Before the second try; doubled each time.
const AGAIN: Duration = Duration::from_secs(1);

/// Something to tell about an object, as an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// About what.
    pub about: ObjectReference,
    /// Warning instead of Normal.
    pub warning: bool,
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Gives LoadBalancer services their address.
pub(crate) struct Balancer {
    client: Client,
    node: IpAddr,
    notices: mpsc::UnboundedSender<Notice>,
    /// UIDs of services of which it was said that SCTP is not carried.
    warned: HashSet<String>,
}

impl Balancer {
    pub(crate) fn new(client: Client, node: IpAddr, notices: mpsc::UnboundedSender<Notice>) -> Self {
        Self { client, node, notices, warned: HashSet::new() }
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
        if let Some(status) = status(service, self.node) {
            self.tell(service, false, "EnsuredLoadBalancer", format!("the login node, {}, listens", self.node));
            tokio::spawn(post(self.client.clone(), service.clone(), status));
        }
    }

    /// What the member, or the pod `uid`, says that is no question.
    pub(crate) fn heard(&self, world: &World, uid: &str, question: &NetQuestion) {
        let NetQuestion::NotListening { service, at, protocol, message } = question else { return };
        tracing::warn!(?service, uid, %at, ?protocol, %message, "no listener");
        let message = format!("{} {at}: {message}", format!("{protocol:?}").to_uppercase());
        match service {
            // Services' ports are the member's alone.
            Some(_) if uid != MEMBER => {}
            Some(key) => {
                if let Some(service) = world.known_service(key) {
                    self.tell(service, true, "PortNotAvailable", message);
                }
            }
            None => {
                if let Some(pod) = world.known_pod(uid) {
                    let about = ObjectReference {
                        api_version: Some("v1".to_owned()),
                        kind: Some("Pod".to_owned()),
                        name: Some(pod.name.clone()),
                        namespace: Some(pod.namespace.clone()),
                        uid: Some(uid.to_owned()),
                        ..ObjectReference::default()
                    };
                    let _ = self.notices.send(Notice { about, warning: true, reason: "HostPortNotAvailable", message });
                }
            }
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

/// The status of a LoadBalancer that has no address yet. One that somebody else gave stays.
fn status(service: &Service, node: IpAddr) -> Option<Value> {
    let given = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref());
    let wants = is_ours(service) && given.is_none_or(Vec::is_empty) && service.metadata.deletion_timestamp.is_none();
    wants.then(|| json!({"status": {"loadBalancer": {"ingress": [{"ip": node, "ipMode": "VIP"}]}}}))
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

    #[test]
    fn an_address_is_given_once() {
        let node = "10.77.0.1".parse().unwrap();
        let of = |spec, given| status(&service(spec, given), node);
        let balanced = json!({"type": "LoadBalancer"});
        let found = of(balanced.clone(), json!({})).unwrap();
        assert_eq!(found["status"]["loadBalancer"]["ingress"][0]["ip"], "10.77.0.1");
        assert_eq!(of(balanced, json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})), None, "another's stays");
        assert_eq!(of(json!({"type": "LoadBalancer", "loadBalancerClass": "x/y"}), json!({})), None);
        assert_eq!(of(json!({"type": "NodePort"}), json!({})), None);
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
