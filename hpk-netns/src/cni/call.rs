//! What a plug-in is asked and what it answers, <https://www.cni.dev/docs/spec/#section-4-plugin-delegation> and
//! sections 2 and 5. Pure.

use super::list::{List, Plugin};
use hpk_api::cni::CniResult;
use hpk_api::link::Protocol;
use hpk_api::net::{Bandwidth, HostPort};
use serde_json::{Map, Value, json};

/// What plug-ins are told of the pod beside their configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runtime {
    /// CNI_CONTAINERID: the pod's UID.
    pub(crate) container_id: String,
    pub(crate) args: String,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) bandwidth: Bandwidth,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Check,
    Del,
}

impl Verb {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
        }
    }
}

/// CNI_ARGS of a pod, as other runtimes give them. Values hold neither `;` nor `=`.
pub(crate) fn args(namespace: &str, name: &str, uid: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={uid};K8S_POD_UID={uid}"
    )
}

/// Standard input of a plug-in.
pub(crate) fn configuration(list: &List, plugin: &Plugin, runtime: &Runtime, previous: &Value) -> Value {
    let mut conf = plugin.conf.clone();
    conf.insert("cniVersion".to_owned(), list.version.into());
    conf.insert("name".to_owned(), list.name.as_str().into());
    conf.insert("prevResult".to_owned(), previous.clone());
    let mut dynamic = Map::new();
    for capability in &plugin.capabilities {
        if let Some(value) = argument(capability, runtime) {
            dynamic.insert(capability.clone(), value);
        }
    }
    if !dynamic.is_empty() {
        conf.insert("runtimeConfig".to_owned(), dynamic.into());
    }
    conf.into()
}

/// The conventional capability arguments that a pod of ours has (CONVENTIONS.md of the specification).
fn argument(capability: &str, runtime: &Runtime) -> Option<Value> {
    match capability {
        "portMappings" if !runtime.host_ports.is_empty() => {
            Some(runtime.host_ports.iter().map(port).collect::<Vec<_>>().into())
        }
        "bandwidth" if !runtime.bandwidth.is_unlimited() => {
            let mut limits = Map::new();
            for (rate, burst, value) in [
                ("ingressRate", "ingressBurst", runtime.bandwidth.ingress),
                ("egressRate", "egressBurst", runtime.bandwidth.egress),
            ] {
                if let Some(bits) = value {
                    limits.insert(rate.to_owned(), bits.into());
                    limits.insert(burst.to_owned(), self::burst(bits).into());
                }
            }
            Some(limits.into())
        }
        _ => None,
    }
}

/// Bits that may go at once: a tenth of a second's, and no less than two segments as large as they come.
fn burst(rate: u64) -> u64 {
    (rate / 10).clamp(2 * 8 * 65_536, u64::from(u32::MAX))
}

/// Without hostIP: at which of the node's addresses a port is open was decided before a packet comes to the plug-in's rules.
fn port(port: &HostPort) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    json!({"hostPort": port.host_port, "containerPort": port.container_port, "protocol": protocol})
}

/// A result of ours in the list's version of the specification, for plug-ins: the pod's namespace is `sandbox`.
pub(crate) fn previous(list: &List, result: &CniResult, sandbox: &str) -> Value {
    let mut result = result.clone();
    list.version.clone_into(&mut result.cni_version);
    for interface in &mut result.interfaces {
        if !interface.sandbox.is_empty() {
            sandbox.clone_into(&mut interface.sandbox);
        }
        if list.version == "1.0.0" {
            interface.mtu = None;
        }
    }
    serde_json::to_value(result).unwrap_or_default()
}

/// The last plug-in's result as the pod's: `inside` is where plug-ins saw its namespace, `sandbox` where the node does.
/// `first`: the overlay's own, for what version 1.0.0 does not carry.
pub(crate) fn result(
    last: &Value,
    first: &CniResult,
    inside: &str,
    sandbox: &str,
) -> Result<CniResult, serde_json::Error> {
    let mut result: CniResult = serde_json::from_value(last.clone())?;
    hpk_api::cni::VERSION.clone_into(&mut result.cni_version);
    for interface in result.interfaces.iter_mut().filter(|i| i.mtu.is_none()) {
        interface.mtu = first.interfaces.iter().find(|own| own.name == interface.name).and_then(|own| own.mtu);
    }
    for interface in result.interfaces.iter_mut().filter(|i| i.sandbox == inside) {
        sandbox.clone_into(&mut interface.sandbox);
    }
    Ok(result)
}

/// What a plug-in that failed has said: its error object, or whatever it wrote.
pub(crate) fn complaint(stdout: &[u8], stderr: &[u8], code: Option<i32>) -> String {
    let said = serde_json::from_slice::<Value>(stdout).ok().and_then(|value| {
        let part = |key| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let message = part("msg")?;
        Some(part("details").map_or_else(|| message.clone(), |details| format!("{message}: {details}")))
    });
    said.unwrap_or_else(|| {
        let written = [stdout, stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned()).join(" ");
        let end = code.map_or_else(|| "ended by a signal".to_owned(), |code| format!("exit code {code}"));
        format!("{end} {}", written.trim()).trim().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::net::NetworkList;

    fn list(version: &str) -> List {
        let text = format!(
            r#"{{"cniVersion":"{version}","name":"n","plugins":[{{"type":"hpk-overlay"}},
               {{"type":"bandwidth","capabilities":{{"bandwidth":true,"portMappings":true,"ips":true}}}},{{"type":"tuning","mtu":9}}]}}"#
        );
        List::parse(&NetworkList { file: String::new(), text }).unwrap()
    }

    #[test]
    fn only_declared_capabilities_are_given() {
        let runtime = Runtime {
            host_ports: vec![HostPort {
                protocol: Protocol::Udp,
                host_ip: Some("10.0.0.1".parse().unwrap()),
                host_port: 53,
                container_port: 5353,
            }],
            bandwidth: Bandwidth { ingress: Some(10_000_000), egress: None },
            ..Runtime::default()
        };
        let list = list("1.0.0");
        let conf = configuration(&list, &list.plugins[0], &runtime, &json!({"cniVersion": "1.0.0"}));
        assert_eq!(
            conf,
            json!({"type": "bandwidth", "cniVersion": "1.0.0", "name": "n", "prevResult": {"cniVersion": "1.0.0"},
                "runtimeConfig": {
                    "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 1_048_576},
                    "portMappings": [{"hostPort": 53, "containerPort": 5353, "protocol": "udp"}]}})
        );
        let conf = configuration(&list, &list.plugins[1], &runtime, &Value::Null);
        assert_eq!(conf, json!({"type": "tuning", "mtu": 9, "cniVersion": "1.0.0", "name": "n", "prevResult": null}));
    }

    #[test]
    fn results_are_told_in_the_lists_version() {
        let ours: CniResult = serde_json::from_value(json!({"cniVersion": "1.1.0",
            "interfaces": [{"name": "veth0", "mtu": 1440}, {"name": "eth0", "mtu": 1440, "sandbox": "pod"}],
            "ips": [{"address": "10.244.0.7/32", "interface": 1}]}))
        .unwrap();
        let old = previous(&list("1.0.0"), &ours, "/run/netns/u");
        assert_eq!(old["interfaces"], json!([{"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/u"}]));
        let new = previous(&list("1.1.0"), &ours, "/run/netns/u");
        assert_eq!(new["interfaces"][1]["mtu"], 1440);
        let back = result(&old, &ours, "/run/netns/u", "/proc/7/ns/net").unwrap();
        assert_eq!(back.interfaces[1].mtu, Some(1440));
        assert_eq!(back.cni_version, "1.1.0");
        assert_eq!((back.interfaces[0].sandbox.as_str(), back.interfaces[1].sandbox.as_str()), ("", "/proc/7/ns/net"));
        assert!(result(&json!([]), &ours, "", "").is_err());
    }

    #[test]
    fn complaints() {
        let object = br#"{"cniVersion":"1.0.0","code":999,"msg":"create qdisc: file exists","details":"on veth0"}"#;
        assert_eq!(complaint(object, b"", Some(1)), "create qdisc: file exists: on veth0");
        assert_eq!(complaint(b"", b"panic: x\n", Some(2)), "exit code 2 panic: x");
        assert_eq!(complaint(b"", b"", None), "ended by a signal");
    }
}
