//! Probes and HTTP hooks over the network: what a kubelet does for httpGet, tcpSocket and grpc handlers.
//!
//! Owns the clients and the texts of their outcomes, which are upstream's word for word
//! (`k8s.io/kubernetes/pkg/probe`). Decides nothing: thresholds and consequences are hpk-core's. Exec handlers
//! need a container's namespaces and are the driver's; [`exec::Collector`] gathers their output.

pub mod text;

use hpk_api::probe::Handler;
use std::net::IpAddr;
use std::time::Duration;

/// What a probe needs to know beside its handler.
#[derive(Clone, Debug)]
pub struct ProbeContext {
    /// The pod's first address: the default host.
    pub pod_ip: IpAddr,
    /// `<major>.<minor>` for the User-Agent `kube-probe/<this>`.
    pub kube_version: String,
}

/// Result of one attempt, with upstream's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success.
    Success,
    /// Success, with an event `ProbeWarning` of this text.
    Warning(String),
    /// Failure, with this text for the event `Unhealthy`.
    Failure(String),
    /// The probe itself could not be made (upstream retries it up to three times).
    Unknown(String),
}

/// Runs a network probe once.
pub async fn run(_handler: &Handler, _timeout: Duration, _context: &ProbeContext) -> Outcome {
    Outcome::Unknown("not a network probe".to_owned())
}
