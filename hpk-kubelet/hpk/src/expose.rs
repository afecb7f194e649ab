//! `hpk expose`: a port of the login node that leads to a pod or a Service, while the command runs.
//!
//! It owns one Service of its own, of type NodePort or LoadBalancer, whose listener is made like any other's (by the
//! control plane's member of the pod network). It carries no traffic itself. The Service is owned by its target, so it
//! does not outlive it even where this command was killed.
#![allow(clippy::print_stderr, reason = "it prints for who calls it, and ends then")]

use crate::bootstrap;
use crate::cli::{self, Format};
use crate::home;
use crate::target::Target;
use anyhow::{Context, Result, bail};
use hpk_api::cluster::ClusterConfig;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// On every Service of this command, to find those that a kill left.
const LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "hpk-expose");

/// `hpk expose`.
pub(crate) async fn run(args: cli::Expose) -> Result<ExitCode> {
    let home = home::find()?;
    let path = home.cluster_json();
    let context = || format!("{}: run hpk up", path.display());
    let cluster: ClusterConfig = serde_json::from_slice(&std::fs::read(&path).with_context(context)?)?;
    if let Some(port) = args.port {
        listenable(cluster.node_ip, port)?;
    }
    // Before there is anything to take away again.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let client = bootstrap::client(&home).await?;
    let services: Api<Service> = Api::namespaced(client.clone(), &args.namespace);
    let said = format!("{} in namespace {}", args.target, args.namespace);
    let (manifest, addresses) = match &args.target {
        Target::Service(name) => {
            let service = services.get(name).await.with_context(|| said.clone())?;
            (of_service(&service, args.target_port.as_deref(), args.port)?, None)
        }
        Target::Pod(name) => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
            let pod = pods.get(name).await.with_context(|| said.clone())?;
            let (manifest, ip) = of_pod(&pod, args.target_port.as_deref(), args.port)?;
            (manifest, Some(ip))
        }
    };
    let manifest: Service = serde_json::from_value(manifest)?;
    let made = services.create(&PostParams::default(), &manifest).await?;
    let result = async {
        if let Some(ip) = addresses {
            let slices: Api<EndpointSlice> = Api::namespaced(client, &args.namespace);
            let slice: EndpointSlice = serde_json::from_value(slice(&made, ip))?;
            slices.create(&PostParams::default(), &slice).await?;
        }
        say(&args, cluster.node_ip, &made)?;
        let (name, uid) = (made.name_any(), made.uid().unwrap_or_default());
        let gone = conditions::is_deleted(&uid);
        tokio::select! {
            _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
            _ = terminate.recv() => Ok(ExitCode::SUCCESS),
            gone = await_condition(services.clone(), &name, gone) => {
                gone?;
                bail!("{said} is gone, and with it the port")
            }
        }
    }
    .await;
    match services.delete(&made.name_any(), &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(e) => eprintln!("hpk: service {} stays: delete it with kubectl: {e}", made.name_any()),
        Ok(_) => {}
    }
    result
}

/// Whether a user's program can listen there now.
fn listenable(ip: IpAddr, port: u16) -> Result<()> {
    if port < 1024 {
        bail!("--port {port}: an ordinary user listens at 1024 and above");
    }
    let at = SocketAddr::new(ip, port);
    TcpListener::bind(at)
        .and_then(|_| UdpSocket::bind(at))
        .map(|_| ())
        .with_context(|| format!("--port {port}: cannot listen at {at}: give another, or none to have one chosen"))
}

/// The port in `spec.ports` of what was made: what listeners use.
fn listening(made: &Service) -> Option<(u16, String)> {
    let spec = made.spec.as_ref()?;
    let port = spec.ports.as_ref()?.first()?;
    let number = if spec.type_.as_deref() == Some("LoadBalancer") { port.port } else { port.node_port? };
    Some((u16::try_from(number).ok()?, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())))
}

fn say(args: &cli::Expose, node: IpAddr, made: &Service) -> Result<()> {
    let (port, protocol) = listening(made).context("the API server gave no port")?;
    let at = SocketAddr::new(node, port);
    let mut out = std::io::stdout();
    match args.output.output {
        Format::Json => writeln!(
            out,
            "{}",
            json!({"target": args.target.to_string(), "namespace": args.namespace, "address": node, "port": port,
                "protocol": protocol, "service": made.name_any()})
        )?,
        Format::Text => writeln!(
            out,
            "{} is at {at} ({protocol}) until this command ends; whoever reaches the login node reaches it",
            args.target
        )?,
    }
    // A pipe's reader waits for this line.
    out.flush()?;
    Ok(())
}

/// The Service for a target. `port`: its own entry's, where the target's entry has `protocol`.
fn manifest(owner: &Value, name: &str, selector: Option<Value>, entry: &Value, at: Option<u16>) -> Value {
    let mut entry = entry.clone();
    let mut spec = json!({"type": "NodePort"});
    if let Some(at) = at {
        spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
        entry["port"] = json!(at);
    }
    if let Some(selector) = selector {
        spec["selector"] = selector;
    }
    spec["ports"] = json!([entry]);
    // With the API server's own five characters a label of at most 63.
    let prefix: String = format!("hpk-expose-{name}").chars().take(56).collect();
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"generateName": format!("{}-", prefix.replace('.', "-").trim_end_matches('-')),
            "labels": {LABEL.0: LABEL.1}, "ownerReferences": [owner]},
        "spec": spec})
}

fn owner(kind: &str, name: &str, uid: Option<String>) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid.unwrap_or_default()})
}

fn of_service(service: &Service, wanted: Option<&str>, at: Option<u16>) -> Result<Value> {
    let name = service.name_any();
    let spec = service.spec.as_ref().with_context(|| format!("service/{name} has no spec"))?;
    let Some(selector) = spec.selector.as_ref().filter(|s| !s.is_empty()) else {
        bail!("service/{name} has no selector, so its endpoints are somebody else's: expose a pod instead");
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let matches = |p: &&k8s_openapi::api::core::v1::ServicePort| {
        wanted.is_none_or(|w| p.name.as_deref() == Some(w) || p.port.to_string() == w)
    };
    let found: Vec<_> = ports.iter().filter(matches).collect();
    let names = || {
        let name = |p: &k8s_openapi::api::core::v1::ServicePort| {
            p.name.as_ref().map_or_else(|| p.port.to_string(), |n| format!("{} ({n})", p.port))
        };
        ports.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let port = match found.as_slice() {
        [port] => port,
        [] => bail!("service/{name} has no such port; it has {}", names()),
        _ => bail!("service/{name} has several ports, say which: {}", names()),
    };
    let target = match &port.target_port {
        Some(target) => serde_json::to_value(target)?,
        None => json!(port.port),
    };
    let entry = json!({"port": port.port, "protocol": port.protocol, "targetPort": target});
    let owner = owner("Service", &name, service.uid());
    Ok(manifest(&owner, &name, Some(serde_json::to_value(selector)?), &entry, at))
}

fn of_pod(pod: &Pod, wanted: Option<&str>, at: Option<u16>) -> Result<(Value, IpAddr)> {
    let name = pod.name_any();
    let spec = pod.spec.as_ref().with_context(|| format!("pod/{name} has no spec"))?;
    if spec.host_network == Some(true) {
        bail!("pod/{name} is in its node's own network (hostNetwork): its ports are the node's");
    }
    let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok());
    let ip = ip.with_context(|| format!("pod/{name} has no address yet: wait until it runs"))?;
    let declared: Vec<_> = spec.containers.iter().flat_map(|c| c.ports.iter().flatten()).collect();
    let found = match wanted {
        Some(w) => declared.iter().find(|p| p.name.as_deref() == Some(w) || p.container_port.to_string() == w),
        None if declared.len() == 1 => declared.first(),
        None => bail!("pod/{name} declares {} ports: say which one is meant", declared.len()),
    };
    let entry = match (found, wanted) {
        (Some(p), _) => json!({"port": p.container_port, "protocol": p.protocol, "targetPort": p.container_port}),
        // A port need not be declared to be listened on.
        (None, Some(w)) => match w.parse::<u16>() {
            Ok(number) if number > 0 => json!({"port": number, "protocol": "TCP", "targetPort": number}),
            _ => bail!("pod/{name} has no port named {w}"),
        },
        (None, None) => bail!("pod/{name}: say which port is meant"),
    };
    let owner = owner("Pod", &name, pod.uid());
    Ok((manifest(&owner, &name, None, &entry, at), ip))
}

/// The one endpoint of a Service for a pod. It is owned by the Service.
fn slice(made: &Service, ip: IpAddr) -> Value {
    let port = made.spec.as_ref().and_then(|s| s.ports.as_ref()?.first());
    let number = port.map(|p| match &p.target_port {
        Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(n)) => *n,
        _ => p.port,
    });
    let name = made.name_any();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "ownerReferences": [owner("Service", &name, made.uid())],
            "labels": {"kubernetes.io/service-name": name, LABEL.0: LABEL.1}},
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"port": number, "protocol": port.and_then(|p| p.protocol.clone())}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn targets() {
        assert_eq!("pod/a".parse(), Ok(Target::Pod("a".into())));
        assert_eq!("svc/a".parse(), Ok(Target::Service("a".into())));
        for bad in ["a", "pod/", "deployment/a"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_lends_its_selector_and_one_of_its_ports() {
        let web = service(json!({"selector": {"app": "web"}, "ports": [
            {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"},
            {"name": "dns", "port": 53, "protocol": "UDP"}]}));
        let why = of_service(&web, None, None).unwrap_err().to_string();
        assert!(why.contains("80 (http), 53 (dns)"), "{why}");
        assert!(of_service(&web, Some("99"), None).is_err());
        let made = of_service(&web, Some("http"), None).unwrap();
        assert_eq!(made["spec"]["type"], "NodePort");
        assert_eq!(made["spec"]["selector"]["app"], "web");
        assert_eq!(made["spec"]["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": "http"}]));
        let made = of_service(&web, Some("53"), Some(5353)).unwrap();
        assert_eq!(made["spec"]["type"], "LoadBalancer");
        assert_eq!(made["spec"]["ports"], json!([{"port": 5353, "protocol": "UDP", "targetPort": 53}]));
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u", "goes with it");
        assert!(of_service(&service(json!({"ports": [{"port": 1}]})), None, None).is_err(), "no selector");
    }

    #[test]
    fn a_pod_is_reached_by_its_address_declared_port_or_not() {
        let pod = |network: bool, ip: Option<&str>| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"podIP": ip},
                "spec": {"hostNetwork": network, "containers": [{"name": "c",
                    "ports": [{"name": "http", "containerPort": 8080}]}]}}))
            .unwrap()
        };
        let running = pod(false, Some("10.244.0.9"));
        for (wanted, port) in [(None, 8080), (Some("http"), 8080), (Some("9000"), 9000)] {
            let (made, ip) = of_pod(&running, wanted, Some(7000)).unwrap();
            assert_eq!(ip, IpAddr::from([10, 244, 0, 9]));
            let made: Service = serde_json::from_value(made).unwrap();
            assert_eq!(slice(&made, ip)["ports"][0]["port"], port);
            assert_eq!(listening(&made), Some((7000, "TCP".to_owned())));
        }
        assert!(of_pod(&running, Some("nope"), None).is_err());
        assert!(of_pod(&pod(true, Some("10.77.0.11")), None, None).is_err());
        assert!(of_pod(&pod(false, None), None, None).is_err());
    }
}
