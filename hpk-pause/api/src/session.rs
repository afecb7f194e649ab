//! Commands that run beside a container's own, and what they take of the node.

use serde::{Deserialize, Serialize};

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOptions {
    /// Container name.
    pub container: String,
    /// argv.
    pub command: Vec<String>,
    /// Channel 0 is fed.
    #[serde(default)]
    pub stdin: bool,
    /// Channel 1 is wanted.
    #[serde(default)]
    pub stdout: bool,
    /// Channel 2 is wanted (never with tty).
    #[serde(default)]
    pub stderr: bool,
    /// Give it a terminal; channel 4 carries [`crate::control::TerminalSize`].
    #[serde(default)]
    pub tty: bool,
}

/// CPU and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since the start, nanoseconds.
    pub cpu_nanos: u64,
    /// Working set, bytes.
    pub memory_bytes: u64,
    /// Resident set, bytes.
    pub rss_bytes: u64,
    /// Processes.
    pub processes: u64,
}
