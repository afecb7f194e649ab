//! Probes and lifecycle handlers, with ports and hosts already resolved by the kubelet.

use serde::{Deserialize, Serialize};

/// What a probe or hook does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handler {
    /// Run a command in the container's namespaces.
    Exec {
        /// argv, not through a shell.
        command: Vec<String>,
    },
    /// HTTP GET.
    HttpGet {
        /// `http` or `https` (any case).
        scheme: String,
        /// None: the pod's address.
        #[serde(default)]
        host: Option<String>,
        /// Port number.
        port: u16,
        /// Path with query.
        path: String,
        /// Header name and value, in the order of the spec.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// TCP connect.
    TcpSocket {
        /// None: the pod's address.
        #[serde(default)]
        host: Option<String>,
        /// Port number.
        port: u16,
    },
    /// gRPC health check, `grpc.health.v1.Health/Check`.
    Grpc {
        /// Port number.
        port: u16,
        /// Service name; may be empty.
        #[serde(default)]
        service: String,
    },
    /// Hooks only: wait.
    Sleep {
        /// Seconds.
        seconds: u64,
    },
    /// A handler that cannot be carried out (a named port that does not exist, …): it fails with this text.
    Invalid {
        /// Names the field and the remedy.
        message: String,
    },
}

/// A probe with the API server's defaults filled in. All times in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What to do.
    pub handler: Handler,
    /// Delay after the container's start, ≥ 0.
    #[serde(default)]
    pub initial_delay_seconds: u32,
    /// ≥ 1, default 1.
    pub timeout_seconds: u32,
    /// ≥ 1, default 10.
    pub period_seconds: u32,
    /// ≥ 1, default 1.
    pub success_threshold: u32,
    /// ≥ 1, default 3.
    pub failure_threshold: u32,
    /// Overrides the pod's grace period when this probe kills the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<u32>,
}

/// The three kinds of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// Gates the others until it succeeded once.
    Startup,
    /// Kills the container on failure.
    Liveness,
    /// Decides `ready`.
    Readiness,
}

/// Probes of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// Startup probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// Liveness probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// Readiness probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
}

/// Lifecycle hooks of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// After the start; the container is not "started" until it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_start: Option<Handler>,
    /// Before the stop signal, within the grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Handler>,
}
