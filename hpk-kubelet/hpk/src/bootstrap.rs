//! The cluster's own objects, applied at every start: rights of the kubelet and of CoreDNS, the service
//! kube-dns with its endpoint, CoreDNS' real address on the login node, the metrics API (`kubectl top`)
//! that hpk-kubelet serves, unless the user has installed another, and the policy for flags of Slurm.

use crate::apply::{BootstrapError, apply};
use crate::flags_policy;
use crate::label_policy;
use crate::partition_nodes;
use crate::runtime_classes;
use crate::storage_classes;
use hpk_api::cluster::ClusterConfig;
use hpk_layout::Home;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A client with the user's own rights.
pub(crate) async fn client(home: &Home) -> Result<Client, BootstrapError> {
    // More than one TLS library may be compiled in; say which one is meant. A second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = kube::config::Kubeconfig::read_from(home.kubeconfig())?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    // A proxy of the user's environment is for the world, not for an address of this host.
    config.proxy_url = None;
    Client::try_from(config).map_err(|e| BootstrapError::Client(Box::new(e)))
}

/// `hpk bootstrap`.
pub(crate) async fn run(home: &Home) -> Result<(), BootstrapError> {
    let path = home.cluster_json();
    let bytes = std::fs::read(&path).map_err(|source| BootstrapError::Read { path, source })?;
    let cluster: ClusterConfig = serde_json::from_slice(&bytes)?;
    let client = client(home).await?;

    for role in roles() {
        apply::<ClusterRole>(&Api::all(client.clone()), role).await?;
    }
    for binding in bindings() {
        apply::<ClusterRoleBinding>(&Api::all(client.clone()), binding).await?;
    }
    partition_nodes::run(&client, &cluster, &labels()).await?;
    for class in runtime_classes::all(&labels()) {
        apply::<RuntimeClass>(&Api::all(client.clone()), class).await?;
    }
    apply::<ValidatingAdmissionPolicy>(&Api::all(client.clone()), flags_policy::policy(&labels())).await?;
    apply::<ValidatingAdmissionPolicyBinding>(&Api::all(client.clone()), flags_policy::binding(&labels())).await?;
    apply::<ValidatingAdmissionPolicy>(&Api::all(client.clone()), label_policy::policy(&labels())).await?;
    apply::<ValidatingAdmissionPolicyBinding>(&Api::all(client.clone()), label_policy::binding(&labels())).await?;
    apply::<ClusterRole>(&Api::all(client.clone()), label_policy::role(&labels())).await?;
    apply::<ClusterRoleBinding>(&Api::all(client.clone()), label_policy::role_binding(&labels())).await?;
    // The API server makes it a moment after it is ready; the service needs it now.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}});
    apply::<Namespace>(&Api::all(client.clone()), namespace).await?;
    apply_in::<Service>(&client, dns_service(&cluster)).await?;
    apply_in::<EndpointSlice>(&client, dns_endpoints(&cluster)).await?;
    apply_in::<Service>(&client, metrics_service(&cluster)).await?;
    apply_in::<EndpointSlice>(&client, metrics_endpoints(&cluster)).await?;
    storage_classes::ensure(&client, &labels(), cluster.scratch.as_deref())
        .await
        .map_err(|(name, source)| BootstrapError::Api { name, source })?;
    let path = hpk_layout::pki::certificate(&home.pki(), hpk_layout::pki::CA);
    let ca = std::fs::read(&path).map_err(|source| BootstrapError::Read { path, source })?;
    let api: Api<APIService> = Api::all(client);
    let present = api
        .get_opt(METRICS_API)
        .await
        .map_err(|source| BootstrapError::Api { name: METRICS_API.to_owned(), source: Box::new(source) })?;
    if present.is_none_or(|p| p.labels().get(MANAGED_BY).is_some_and(|by| by == "hpk")) {
        apply::<APIService>(&api, metrics_api(&ca)?).await?;
    }
    Ok(())
}

async fn apply_in<K>(client: &Client, object: Value) -> Result<(), BootstrapError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Serialize
        + std::fmt::Debug,
{
    apply::<K>(&Api::namespaced(client.clone(), "kube-system"), object).await
}

/// What an upstream kubelet may do comes with the API server's Node authorizer and is limited to its own
/// pods. Ours also feeds the pods' network, which needs services, endpoints, policies and their selectors.
fn roles() -> Vec<Value> {
    let role = |name: &str, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name, "labels": labels()}, "rules": rules,
        })
    };
    let watch = json!(["get", "list", "watch"]);
    vec![
        role(
            "hpk:kubelet",
            json!([
                {"apiGroups": [""], "resources": ["services", "endpoints", "pods", "namespaces", "nodes"], "verbs": watch},
                // Finalizers of load balancers.
                {"apiGroups": [""], "resources": ["services"], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["services/status"], "verbs": ["get", "patch", "update"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
                {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": watch},
                // The provisioner.
                {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": watch},
                {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": watch},
                {"apiGroups": [""], "resources": ["persistentvolumeclaims/status"], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["persistentvolumes"],
                 "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
                {"apiGroups": ["scheduling.k8s.io"], "resources": ["priorityclasses", "podgroups"], "verbs": watch},
            ]),
        ),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "hpk:metrics-reader", "labels": {
                MANAGED_BY: "hpk",
                "rbac.authorization.k8s.io/aggregate-to-view": "true",
                "rbac.authorization.k8s.io/aggregate-to-edit": "true",
                "rbac.authorization.k8s.io/aggregate-to-admin": "true",
            }},
            "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
        }),
        role(
            "hpk:coredns",
            json!([
                {"apiGroups": [""], "resources": ["services", "endpoints", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ]),
        ),
    ]
}

fn bindings() -> Vec<Value> {
    let binding = |role: &str, kind: &str, subject: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": role, "labels": labels()},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": subject}],
        })
    };
    vec![binding("hpk:kubelet", "Group", "system:nodes"), binding("hpk:coredns", "User", "system:coredns")]
}

fn dns_service(cluster: &ClusterConfig) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 53, "targetPort": cluster.dns_addr.port()});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {
            "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "app.kubernetes.io/managed-by": "hpk",
        }},
        // No selector: CoreDNS is no pod, its endpoint is written below.
        "spec": {
            "clusterIP": cluster.dns_service_ip,
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}

fn dns_endpoints(cluster: &ClusterConfig) -> Value {
    let port =
        |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": cluster.dns_addr.port()});
    let ip = cluster.dns_addr.ip();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-hpk", "namespace": "kube-system", "labels": {
            "kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "hpk",
        }},
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false}}],
        "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
    })
}

/// Name of the service; hpk-kubelet's certificate has `<name>.kube-system.svc`.
const METRICS_SERVICE: &str = "hpk-metrics";
const METRICS_API: &str = "v1beta1.metrics.k8s.io";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

fn metrics_service(cluster: &ClusterConfig) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": METRICS_SERVICE, "namespace": "kube-system", "labels": labels()},
        "spec": {"ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": cluster.kubelet_addr.port()}]},
    })
}

fn metrics_endpoints(cluster: &ClusterConfig) -> Value {
    let ip = cluster.node_ip;
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": METRICS_SERVICE, "namespace": "kube-system", "labels": {
            "kubernetes.io/service-name": METRICS_SERVICE, "endpointslice.kubernetes.io/managed-by": "hpk",
        }},
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false}}],
        "ports": [{"name": "https", "protocol": "TCP", "port": cluster.kubelet_addr.port()}],
    })
}

fn metrics_api(ca: &[u8]) -> Result<Value, serde_json::Error> {
    Ok(json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": METRICS_API, "labels": labels()},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1",
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": METRICS_SERVICE, "namespace": "kube-system", "port": 443},
            "caBundle": serde_json::to_value(ByteString(ca.to_vec()))?,
        },
    }))
}

fn labels() -> Value {
    json!({MANAGED_BY: "hpk"})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of `wanted` must survive the way through the type.
    fn keeps<K: DeserializeOwned + Serialize>(wanted: &Value) {
        let typed: K = serde_json::from_value(wanted.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), *wanted);
    }

    #[test]
    fn objects_are_what_their_types_say() {
        let cluster = crate::decide::tests::layout().cluster;
        roles().iter().for_each(keeps::<ClusterRole>);
        bindings().iter().for_each(keeps::<ClusterRoleBinding>);
        keeps::<Service>(&dns_service(&cluster));
        keeps::<EndpointSlice>(&dns_endpoints(&cluster));
        keeps::<Service>(&metrics_service(&cluster));
        keeps::<EndpointSlice>(&metrics_endpoints(&cluster));
        keeps::<ValidatingAdmissionPolicy>(&flags_policy::policy(&labels()));
        keeps::<ValidatingAdmissionPolicyBinding>(&flags_policy::binding(&labels()));
        keeps::<ValidatingAdmissionPolicy>(&label_policy::policy(&labels()));
        keeps::<ValidatingAdmissionPolicyBinding>(&label_policy::binding(&labels()));
        keeps::<ClusterRole>(&label_policy::role(&labels()));
        keeps::<ClusterRoleBinding>(&label_policy::role_binding(&labels()));
        runtime_classes::all(&labels()).iter().for_each(keeps::<RuntimeClass>);
        keeps::<APIService>(&metrics_api(b"pem").unwrap());
        assert_eq!(dns_service(&cluster)["spec"]["clusterIP"], "10.96.0.10");
        assert_eq!(dns_endpoints(&cluster)["endpoints"][0]["addresses"][0], "10.77.0.1");
    }
}
