//! `link.json` and the messages on the link between hpk-netns and hpk-kubelet.
//!
//! hpk-netns dials the kubelet (TLS 1.3, both sides with certificates of the kubelet's own CA, the client's
//! subject is the pod's UID) and the connection is multiplexed by yamux. Each stream begins with one JSON
//! line, [`StreamOpen`]. Streams opened by the kubelet carry one connection to the supervisor's socket;
//! streams opened by hpk-netns ask the kubelet for network facts.
//!
//! The kubelet writes `link.json` again whenever its address changes or a certificate is to be renewed; hpk-netns reads
//! it before each dial. Only the certificate that was written last is accepted.

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Per-pod credentials, PEM, and where to dial. File mode 0600.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCredentials {
    /// Kubelet's link listener.
    pub address: SocketAddr,
    /// Name in the kubelet's certificate.
    pub server_name: String,
    /// CA of the link, PEM.
    pub ca: String,
    /// The pod's certificate, PEM; common name is the pod's UID.
    pub cert: String,
    /// Its key, PEM.
    pub key: String,
    /// End of the certificate's life. None: issued by a kubelet that set no end.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// First line of every stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamOpen {
    /// Opened by the kubelet: bytes go to and from a new connection to the supervisor's socket.
    Supervisor,
    /// Opened by hpk-netns, once, first: who is there. The kubelet answers with one JSON line [`Welcome`].
    Hello(Hello),
    /// Opened by the kubelet when a second link of the pod comes: whether anybody is still there. Whatever the other end
    /// does with this stream, closing it included, says yes.
    Probe,
    /// Opened by hpk-netns, long-lived: network facts flow from the kubelet as JSON lines [`NetUpdate`],
    /// questions to it as JSON lines [`NetQuestion`].
    Net,
}

/// Who dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`]
    pub version: u32,
    /// Pod UID (must equal the certificate's).
    pub pod_uid: String,
    /// Slurm job id.
    pub job_id: String,
    /// The compute node, as the executor calls it.
    pub node: String,
    /// UDP address on which this pod's datapath can be reached, when the network is an overlay.
    #[serde(default)]
    pub datapath: Option<SocketAddr>,
    /// WireGuard public key (base64) of this pod's datapath.
    #[serde(default)]
    pub public_key: Option<String>,
    /// The pod's addresses, when the network is an overlay. Only those that the kubelet gave it are accepted.
    #[serde(default)]
    pub pod_ips: Vec<IpAddr>,
    /// Whether this node has a program that leads out of the cluster; None: not looked for.
    #[serde(default)]
    pub outward: Option<bool>,
    /// Which outpost of the pod this is ([`crate::net::NetworkPlan::outposts`]), with a link beside the pod's own; 0: it is the
    /// pod's own link.
    #[serde(default)]
    pub outpost: u32,
}

impl Hello {
    /// The link's name: the pod's UID, for an outpost's with its number.
    #[must_use]
    pub fn link(&self) -> String {
        match self.outpost {
            0 => self.pod_uid.clone(),
            number => format!("{}/{number}", self.pod_uid),
        }
    }
}

/// The UID of the pod whose link has this name.
#[must_use]
pub fn owner(link: &str) -> &str {
    link.split('/').next().unwrap_or(link)
}

/// The link of the control plane's member of the pod network: in place of a pod's UID.
pub const MEMBER: &str = "member";

/// The kubelet's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Welcome {
    /// Go on.
    Ok {
        /// Version of the kubelet's contract.
        version: u32,
    },
    /// The two ends do not fit (version): dial again seldom, since either may be replaced.
    Refused {
        /// The reason, for the log of the pod and its events.
        message: String,
    },
    /// Refused as things are now (a certificate that was replaced, a second link): read `link.json` and dial again.
    NotNow {
        /// The reason, for the log of the pod and its events.
        message: String,
    },
}

/// hpk-netns asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetQuestion {
    /// Who owns this pod address?
    Peer {
        /// Address asked for.
        ip: IpAddr,
    },
    /// Which pod has this WireGuard key? It called and is not known here yet.
    PeerByKey {
        /// Public key, base64.
        public_key: String,
    },
    /// No question: a pod cannot listen on its host port.
    NotListening {
        /// Where it should have listened.
        at: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// Why, and what to do about it.
        message: String,
    },
    /// No question, and the control plane's member's alone: it has tried to listen for all services ([`NetUpdate::Listeners`]),
    /// with this outcome. Said when that is not what was said before, and once on each link.
    Listened {
        /// All ports that it has.
        has: Vec<Listening>,
        /// All that it has not got.
        failed: Vec<NotListening>,
    },
}

/// A port of the login node that a service has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Listening {
    /// [`Listener::service`]
    pub service: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it is listened.
    pub at: SocketAddr,
}

/// A port of the login node that a service does not get.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NotListening {
    /// [`Listener::service`]
    pub service: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it should be listened.
    pub at: SocketAddr,
    /// Why it is not, and what to do about it.
    pub message: String,
}

/// The kubelet tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetUpdate {
    /// Answer to [`NetQuestion::Peer`], also pushed when a known peer changes.
    Peer {
        /// Pod address.
        ip: IpAddr,
        /// Where its datapath listens; None: no such peer now.
        endpoint: Option<SocketAddr>,
        /// Its WireGuard public key, base64.
        #[serde(default)]
        public_key: Option<String>,
    },
    /// The whole set of one service's ports and endpoints (replaces what was known of it).
    Service(ServiceFacts),
    /// A service is gone.
    ServiceGone {
        /// `<namespace>/<name>`.
        key: String,
    },
    /// All services known at subscription have been sent.
    ServicesSynced,
    /// The policies that select this pod, compiled; replaces the former ones.
    Policy(PolicyFacts),
    /// To one pod: the job of another on its node did not end in order. What is left of it there is to be removed.
    Sweep,
    /// To the control plane's member ([`MEMBER`]) only: its whole set of relays.
    Relays(Vec<Relay>),
    /// To the control plane's member ([`MEMBER`]) only: its whole set of listeners.
    Listeners(Vec<Listener>),
}

/// A port of the login node that leads to a service: what NodePort and LoadBalancer become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// `<namespace>/<name>`.
    pub service: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where to listen, in the login node's own network.
    pub at: SocketAddr,
    /// Where connections go, in the pod network; none: they are refused.
    pub endpoints: Vec<SocketAddr>,
    /// Whose clients are served (loadBalancerSourceRanges); none: everybody's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpNet>,
    /// Seconds of ClientIP affinity; None: no affinity.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// The kubelet holds the port for this service, so that nobody gets it while the member is started again: it is to be shared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// A service endpoint outside of the pod network (the API server, CoreDNS, a host-network pod): the member listens on
/// one of its own ports for it, and datapaths are told that port as the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Port of the member's pod address.
    pub port: u16,
    /// Where it leads, in the login node's own network.
    pub target: SocketAddr,
}

/// One Service as the datapath needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFacts {
    /// `<namespace>/<name>`.
    pub key: String,
    /// ClusterIPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Who may come by the load balancer's address (loadBalancerSourceRanges); none: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpNet>,
    /// Seconds of ClientIP affinity; None: no affinity.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a service with its ready endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Port of the ClusterIP.
    pub port: u16,
    /// Where to go.
    pub endpoints: Vec<SocketAddr>,
    /// Further addresses that lead there: node port, load balancer's and external addresses.
    #[serde(default)]
    pub also: Vec<SocketAddr>,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// NetworkPolicies that select a pod, compiled to addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFacts {
    /// None: ingress is not isolated. Some: only what a rule allows.
    #[serde(default)]
    pub ingress: Option<Vec<PolicyRule>>,
    /// None: egress is not isolated.
    #[serde(default)]
    pub egress: Option<Vec<PolicyRule>>,
}

/// Allowed peers × ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// CIDRs allowed; None: everyone.
    #[serde(default)]
    pub peers: Option<Vec<PolicyPeer>>,
    /// Ports allowed; None: all.
    #[serde(default)]
    pub ports: Option<Vec<PolicyPort>>,
}

/// One CIDR with exceptions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPeer {
    /// CIDR.
    pub cidr: String,
    /// CIDRs left out.
    #[serde(default)]
    pub except: Vec<String>,
}

/// One port range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPort {
    /// Protocol.
    pub protocol: Protocol,
    /// First port; 0 with `last` 0: all.
    pub first: u16,
    /// Last port.
    pub last: u16,
}
