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

/// Upper bounds of [`ProbeCounts::buckets`], milliseconds: Prometheus' own default, which upstream's kubelet has too.
pub const DURATION_BUCKETS: [u32; 11] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// How often a probe of a container has run since the pod began, over all instances of the container, for metrics. A run
/// that could not be made (`ProbeError`) counts nowhere, as upstream has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCounts {
    /// Container name.
    pub container: String,
    /// Which probe.
    pub kind: ProbeKind,
    /// Runs that succeeded.
    pub successful: u64,
    /// Runs that failed.
    pub failed: u64,
    /// Time that all successful runs took together, nanoseconds.
    pub nanos: u64,
    /// Successful runs that took longer than the bucket before allows and no longer than this one does; those over all
    /// of [`DURATION_BUCKETS`] are in none.
    pub buckets: Vec<u64>,
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
