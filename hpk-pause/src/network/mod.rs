//! The pod's network, as far as it is the supervisor's: its devices, addresses and routes, and the hand-over to
//! hpk-netns. What the pod's namespace was given is a CNI result in every mode, and the supervisor's to keep and report.
//!
//! ```text
//!   overlay         TUN eth0: address, routes ───── TunOffer + descriptor ──▶ hpk-netns (netns.sock)
//!                                              ◀─── TunAnswer ─────────────
//!   overlay, list   eth0 ═ veth0 │ TUN  (node side) ─ + namespaces ─────────▶ runs the list's further plug-ins
//!                                              ◀─── their result ──────────
//!   cni             the namespace is given: devices are listed ─ namespaces ▶ Services by nftables
//!   host            the node's own: its address is found
//! ```
//! Blocking: runs before the first container, off the event loop. Without a list no process is started for it.

mod families;
mod found;
mod overlay;
mod side;

use crate::paths::Paths;
pub(crate) use found::own_addresses;
use hpk_api::cni::{CniResult, Dns};
use hpk_api::net::{GivenOffer, NetnsRequest, NetworkMode, Ready, TunAnswer};
use hpk_api::plan::SandboxPlan;
use hpk_sys::netdev::{self, NetError};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The pod's interface.
const DEVICE: &str = "eth0";

/// How long hpk-netns may take to answer: it waits for the services a moment, and for plug-ins, each with a limit of its
/// own, a good while.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const PLUGINS_LIMIT: Duration = Duration::from_secs(180);

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// What the pod was given.
    pub result: CniResult,
    /// What is not as planned, for the pod's events: reason and message.
    pub warnings: Vec<(String, String)>,
}

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Device(#[from] NetError),
    /// A range in the plan.
    #[error("network.{field}: {value:?} is no range such as 10.244.0.0/16")]
    Range {
        /// Field of the plan.
        field: &'static str,
        value: String,
    },
    /// The socket of hpk-netns.
    #[error("hpk-netns does not answer on {path}: {source}")]
    Netns { path: String, source: std::io::Error },
    /// It answered that it cannot.
    #[error("hpk-netns: {0}")]
    Refused(String),
    #[error("cannot {what}: {source}")]
    Namespace { what: &'static str, source: std::io::Error },
    /// Apptainer's silent fall-back.
    #[error(
        "network {0:?}: Apptainer has given this pod no interface but lo. For an ordinary user it sets a CNI network up \
         only when it is installed with setuid and apptainer.conf allows it (allow net users, allow net networks): ask \
         the site for that, or use the pods' own network, which needs nothing: hpk down; hpk up --network overlay. \
         `hpk doctor --job` says what this site can do"
    )]
    NoInterface(String),
}

/// Sets the network up.
///
/// # Errors
/// What failed, with the remedy where there is one.
pub(crate) fn make(plan: &SandboxPlan, paths: &Paths) -> Result<Network, NetworkError> {
    let network = &plan.network;
    let mut made = match network.mode {
        NetworkMode::Host => Network { result: found::host(network), warnings: Vec::new() },
        NetworkMode::Cni => {
            netdev::loopback_up()?;
            engine_sysctls();
            given(plan, &paths.netns())?
        }
        NetworkMode::Overlay => {
            netdev::loopback_up()?;
            engine_sysctls();
            overlay::make(network, &paths.netns())?
        }
    };
    // What a plug-in says of name servers is not asked: the pod's dnsPolicy is already in its resolv.conf.
    made.result.dns = plan.resolv_conf.as_deref().map(Dns::of).unwrap_or_default();
    Ok(made)
}

/// Ports below 1024 and ping for every user of the pod, as engines allow them. Not worth a pod's life.
fn engine_sysctls() {
    if let Err(error) = netdev::engine_sysctls() {
        hpk_api::say!("hpk-pause: {error}");
    }
}

/// A network that somebody else made.
fn given(plan: &SandboxPlan, socket: &Path) -> Result<Network, NetworkError> {
    let name = plan.network.cni_network.clone().unwrap_or_default();
    let result = found::given()?.ok_or(NetworkError::NoInterface(name))?;
    if !socket.exists() {
        return Ok(Network { result, warnings: vec![alone("there are no Services by ClusterIP")] });
    }
    let (user, net) = (side::user_namespace()?, side::network_namespace()?);
    let request = NetnsRequest::Given(GivenOffer { pod_ips: result.pod_ips() });
    let ready = ask(socket, &request, &[user.as_fd(), net.as_fd()], ANSWER_LIMIT)?;
    Ok(Network { result: in_sandbox(result, &ready.sandbox), warnings: ready.warning.into_iter().collect() })
}

/// The word of a pod that was started by hand.
fn alone(what: &str) -> (String, String) {
    ("NetworkNotReady".to_owned(), format!("there is no hpk-netns beside this pod: {what}"))
}

/// Devices of the pod are told by where its namespace is on the node.
fn in_sandbox(mut result: CniResult, sandbox: &str) -> CniResult {
    for interface in result.interfaces.iter_mut().filter(|i| i.sandbox == hpk_api::net::POD_SANDBOX) {
        sandbox.clone_into(&mut interface.sandbox);
    }
    result
}

/// One request to hpk-netns.
fn ask(socket: &Path, request: &NetnsRequest, fds: &[BorrowedFd<'_>], limit: Duration) -> Result<Ready, NetworkError> {
    let netns = |source| NetworkError::Netns { path: socket.display().to_string(), source };
    let stream = UnixStream::connect(socket).map_err(netns)?;
    stream.set_read_timeout(Some(limit)).map_err(netns)?;
    let mut line = serde_json::to_vec(request).map_err(|e| netns(e.into()))?;
    line.push(b'\n');
    hpk_sys::fdpass::send(&stream, &line, fds).map_err(|e| netns(e.into()))?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).map_err(netns)?;
    match serde_json::from_str(&answer).map_err(|e| netns(e.into()))? {
        TunAnswer::Ready(ready) => Ok(*ready),
        TunAnswer::Failed { message } => Err(NetworkError::Refused(message)),
    }
}
