//! What a pod's network namespace was given: a CNI result, <https://www.cni.dev/docs/spec/> (1.1, "Success"), in every
//! network mode, whoever made the network.
//!
//! Pure data. Keys that are not known here are passed over, as the specification asks of a reader.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The version of results that HPK itself makes.
pub const VERSION: &str = "1.1.0";

/// The result of an ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    /// Of the specification.
    pub cni_version: String,
    /// Devices that the attachment made or uses, those of the node too.
    #[serde(default, deserialize_with = "or_none")]
    pub interfaces: Vec<Interface>,
    /// Addresses of the pod, the first of each family being its own for the API.
    #[serde(default, deserialize_with = "or_none")]
    pub ips: Vec<Address>,
    /// Routes in the pod.
    #[serde(default, deserialize_with = "or_none")]
    pub routes: Vec<Route>,
    /// Name servers.
    #[serde(default, deserialize_with = "or_none")]
    pub dns: Dns,
}

impl Default for CniResult {
    fn default() -> Self {
        Self {
            cni_version: VERSION.to_owned(),
            interfaces: Vec::new(),
            ips: Vec::new(),
            routes: Vec::new(),
            dns: Dns::default(),
        }
    }
}

impl CniResult {
    /// Addresses of the pod (status.podIPs), in order.
    #[must_use]
    pub fn pod_ips(&self) -> Vec<IpAddr> {
        self.ips.iter().map(|ip| ip.address.addr()).collect()
    }
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// `eth0`
    pub name: String,
    /// Hardware address; empty for a device without one (TUN).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Bytes; None: not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Network namespace that it is in; empty: the node's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// With its network's prefix length.
    pub address: IpNet,
    /// Next hop for what is not on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into [`CniResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// None: on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// As in resolv.conf(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain; empty: not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// What a resolv.conf says.
    #[must_use]
    pub fn of(resolv_conf: &str) -> Self {
        let mut dns = Self::default();
        for line in resolv_conf.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => dns.nameservers.extend(words.next()),
                Some("domain") => dns.domain = words.next().unwrap_or_default(),
                // The last one counts.
                Some("search") => dns.search = words.collect(),
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }
}

/// Go's plug-ins write `null` for an empty list.
fn or_none<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_goes_there_and_back() {
        let text = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"veth1","mac":"02:00:00:00:00:01"},
            {"name":"eth0","mac":"02:00:00:00:00:02","mtu":1440,"sandbox":"/proc/7/ns/net","socketPath":""}],
            "ips":[{"address":"10.244.0.7/32","gateway":"169.254.1.1","interface":1},{"address":"fd00::7/128","interface":1}],
            "routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1","mtu":1400},{"dst":"::/0"}],
            "dns":{"nameservers":["10.96.0.10"],"search":["a","b"]},"new":{"in":"1.2"}}"#;
        let result: CniResult = serde_json::from_str(text).unwrap();
        assert_eq!(result.pod_ips(), ["10.244.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(result.interfaces[1].mtu, Some(1440));
        let again: CniResult = serde_json::from_str(&serde_json::to_string(&result).unwrap()).unwrap();
        assert_eq!(again, result);
    }

    #[test]
    fn lists_may_be_absent_or_null() {
        let result: CniResult = serde_json::from_str(r#"{"cniVersion":"1.0.0","ips":null,"dns":null}"#).unwrap();
        assert_eq!(result, CniResult { cni_version: "1.0.0".to_owned(), ..CniResult::default() });
        assert_eq!(
            serde_json::from_str::<CniResult>("{}").unwrap_err().to_string(),
            "missing field `cniVersion` at line 1 column 2"
        );
    }

    #[test]
    fn resolv_conf() {
        let dns = Dns::of("# c\nsearch a\nnameserver 10.96.0.10\nsearch d.svc b c\noptions ndots:5 edns0\n");
        assert_eq!((dns.nameservers.len(), dns.search.len(), dns.options.len()), (1, 3, 2));
    }
}
