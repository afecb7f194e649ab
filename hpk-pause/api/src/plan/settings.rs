//! Settings of the site that a pod is run with.

use serde::{Deserialize, Serialize};

/// Numbers that a site can change; defaults are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// First back-off, milliseconds (10 s).
    pub backoff_initial_ms: u64,
    /// Longest back-off, milliseconds (300 s).
    pub backoff_max_ms: u64,
    /// A run longer than this resets the back-off, milliseconds (600 s).
    pub backoff_reset_ms: u64,
    /// containerLogMaxSize, bytes (10 MiB).
    pub log_max_bytes: u64,
    /// containerLogMaxFiles (5).
    pub log_max_files: u32,
    /// Who makes the containers.
    pub launcher: LauncherChoice,
    /// `User-Agent` version of probes: `kube-probe/<this>`.
    pub kube_version: String,
    /// Slurm's KillWait, seconds: from its TERM to its KILL (30 s, slurm.conf(5)).
    pub kill_wait_seconds: u32,
    /// A process that is killed for memory leaves the rest of its container alone (upstream's `singleProcessOOMKill`).
    pub single_process_oom_kill: bool,
}

/// Who makes the containers of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LauncherChoice {
    /// The supervisor itself where the kernel gives a user namespace an overlay, else Apptainer.
    #[default]
    Auto,
    /// The supervisor itself.
    Native,
    /// An Apptainer inside the job's.
    Apptainer,
}

impl LauncherChoice {
    /// `auto`, `native` or `apptainer`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "native" => Some(Self::Native),
            "apptainer" => Some(Self::Apptainer),
            _ => None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let logs = crate::cluster::ContainerLogs::default();
        Self {
            backoff_initial_ms: 10_000,
            backoff_max_ms: 300_000,
            backoff_reset_ms: 600_000,
            log_max_bytes: logs.max_bytes,
            log_max_files: logs.max_files,
            launcher: LauncherChoice::Auto,
            kube_version: "1.37".to_owned(),
            kill_wait_seconds: 30,
            single_process_oom_kill: false,
        }
    }
}
