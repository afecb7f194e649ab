//! When a pod's containers are started again.

use serde::{Deserialize, Serialize};

/// restartPolicy of a pod or container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    #[default]
    Always,
    /// Restart unless exit code 0.
    OnFailure,
    /// Never restart.
    Never,
}

/// KEP-5307: container-level rules, first match wins, before any policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRule {
    /// What to do on a match.
    pub action: RestartAction,
    /// Operator on exit codes.
    pub operator: ExitCodeOperator,
    /// Exit codes.
    pub values: Vec<i32>,
}

/// Action of a [`RestartRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartAction {
    /// Restart the container.
    Restart,
    /// Restart all containers of the pod (KEP-5532).
    RestartAllContainers,
}

/// Operator of a [`RestartRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCodeOperator {
    /// Exit code is in the set.
    In,
    /// Exit code is not in the set.
    NotIn,
}
