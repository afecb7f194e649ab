//! Probes and HTTP hooks over the network: what a kubelet does for httpGet, tcpSocket and grpc handlers.
//!
//! Owns the clients and the texts of their outcomes, which are upstream's word for word
//! (`k8s.io/kubernetes/pkg/probe`). Decides nothing: thresholds, retries and consequences are others'. Exec handlers
//! need a container's namespaces and are the driver's. One difference is on purpose: sockets are not set to linger,
//! because closing a lingering socket can block, and this runs in the supervisor's event loop.

mod grpc;
mod h2;
mod hpack;
mod http;
mod http2;
mod request;
mod resolve;
mod response;
pub(crate) mod text;
mod tls;
mod url;

use hpk_api::probe::Handler;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

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
pub(crate) enum Outcome {
    Success,
    /// Success, with an event `ProbeWarning` of this text.
    Warning(String),
    /// Failure, with this text for the event `Unhealthy`.
    Failure(String),
    /// The probe itself could not be made (upstream retries it up to three times).
    Unknown(String),
}

/// A hook that was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HookDone {
    /// The server of an https hook answered with plain http, and the hook was repeated that way: the text of the
    /// event `LifecycleHTTPFallback` (Warning, on the pod).
    pub http_fallback: Option<String>,
}

/// Runs a network probe once. `timeout` covers everything from the first packet to the body.
pub(crate) async fn run(handler: &Handler, timeout: Duration, context: &ProbeContext) -> Outcome {
    match handler {
        Handler::HttpGet { .. } => http::probe(handler, timeout, context).await,
        Handler::TcpSocket { host, port } => {
            let host = host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| context.pod_ip.to_string());
            match tokio::time::timeout(timeout, connect(&host, *port)).await {
                Ok(Ok(_)) => Outcome::Success,
                Ok(Err(text)) => Outcome::Failure(text),
                Err(_) => Outcome::Failure(format!("dial tcp {}: i/o timeout", text::join_host_port(&host, *port))),
            }
        }
        Handler::Grpc { port, service } => grpc::probe(*port, service, timeout, context).await,
        Handler::Invalid { message } => Outcome::Unknown(message.clone()),
        Handler::Exec { .. } | Handler::Sleep { .. } => Outcome::Unknown("not a network probe".to_owned()),
    }
}

/// Runs an httpGet hook: whatever the server answers is success. Without a time limit: the caller bounds it.
///
/// # Errors
/// Upstream's text when no answer came.
pub(crate) async fn run_http_hook(handler: &Handler, context: &ProbeContext) -> Result<HookDone, String> {
    http::hook(handler, context).await
}

/// Connects; the error is Go's text.
async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses = resolve::host(host).await.map_err(|error| format!("dial tcp: {error}"))?;
    let mut first = None;
    for ip in addresses {
        let address = SocketAddr::from((ip, port));
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Failing to switch Nagle off costs time, not correctness.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => {
                first.get_or_insert_with(|| format!("dial tcp {address}: connect: {}", text::errno(&error)));
            }
        }
    }
    Err(first.unwrap_or_else(|| format!("dial tcp: lookup {host}: no such host")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn context() -> ProbeContext {
        ProbeContext { pod_ip: IpAddr::from([127, 0, 0, 1]), kube_version: "1.37".to_owned() }
    }

    #[tokio::test]
    async fn tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let handler = |port| Handler::TcpSocket { host: None, port };
        let second = Duration::from_secs(1);
        assert_eq!(run(&handler(port), second, &context()).await, Outcome::Success);
        let named = Handler::TcpSocket { host: Some("localhost".to_owned()), port };
        assert_eq!(run(&named, second, &context()).await, Outcome::Success);
        drop(listener);
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(run(&handler(port), second, &context()).await, Outcome::Failure(refused));
        let invalid = Handler::Invalid { message: "port \"web\" is not named".to_owned() };
        assert_eq!(run(&invalid, second, &context()).await, Outcome::Unknown("port \"web\" is not named".to_owned()));
    }
}
