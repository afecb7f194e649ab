//! The control socket's requests. One connection is one request.
//!
//! ```text
//! client                                   hpk-pause
//!   {"hello":{"version":1}}\n      ───▶
//!   {"exec":{…}}\n                 ───▶
//!                                  ◀───   {"ok":{…}}\n   or   {"error":{…}}\n
//!   frames (crate::frame)          ◀──▶   frames, until both sides closed     (streaming requests)
//! ```
//! Every line is at most [`MAX_LINE`] bytes. A streaming request is answered with `ok` once it is under way;
//! its end is a frame on channel 3 (error) that carries one JSON [`StreamEnd`].
//! A half-close is a CLOSE frame. A client that closes its side of the connection is gone: its session ends at once,
//! and with exec the process group that it had started.

use crate::plan::ContainerPlan;
use crate::probe::ProbeCounts;
pub use crate::session::{ExecOptions, Usage};
use crate::state::PodState;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest request or answer line in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// First line of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Greeting {
    /// Version check.
    Hello {
        /// [`crate::VERSION`] of the caller.
        version: u32,
    },
}

/// Second line of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answer [`Answer::Status`]; with `watch` then one JSON [`PodState`] line after each change (no frames).
    Status {
        /// Keep reporting.
        #[serde(default)]
        watch: bool,
    },
    /// Log bytes, as a client should see them, on channel 1 (stdout and stderr merged in order).
    Logs(LogOptions),
    /// Run a command in a container.
    Exec(ExecOptions),
    /// Join the streams of a container's running process.
    Attach(AttachOptions),
    /// Dial a port inside the pod's network namespace; bytes on channels 0 (to the port) and 1 (from it).
    PortForward {
        /// TCP port on localhost.
        port: u16,
    },
    /// Dial an address from inside the pod's network namespace (control-plane egress).
    Dial {
        /// `ip:port`
        address: std::net::SocketAddr,
    },
    /// Resource use; answer [`Answer::Stats`].
    Stats,
    /// How often probes have run; answer [`Answer::Probes`]. Counts are told to who asks, not in the state: a pod whose
    /// probes succeed for a year reports nothing.
    Probes,
    /// Ask every plug-in of the pod's CNI configuration list whether the network is as it made it (CHECK); answer
    /// [`Answer::Done`], or an error that names the plug-in.
    CheckNetwork,
    /// Stop the pod in order; answer [`Answer::Done`] at once, the end is seen in the status.
    Stop {
        /// deletionGracePeriodSeconds; a later, shorter one wins.
        grace_period_seconds: u32,
    },
    /// Change what can change in a running pod.
    Update(Update),
}

/// What can be changed in a running pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Ephemeral containers to add (known ones are ignored).
    #[serde(default)]
    pub ephemeral_containers: Vec<ContainerPlan>,
    /// Containers whose plan changed (image, resources, environment, unblocked): replaces the one of the same name from its
    /// next start; a changed image restarts the container.
    #[serde(default)]
    pub containers: Vec<ContainerPlan>,
    /// New activeDeadlineSeconds.
    #[serde(default)]
    pub active_deadline_seconds: Option<u64>,
}

/// Which log lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Container name.
    pub container: String,
    /// The instance before the current one.
    #[serde(default)]
    pub previous: bool,
    /// Go on until the container ended and its log is read.
    #[serde(default)]
    pub follow: bool,
    /// Last n lines.
    #[serde(default)]
    pub tail_lines: Option<u64>,
    /// Only lines at or after this.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Stop after so many bytes.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// Prefix each line with its RFC3339 time.
    #[serde(default)]
    pub timestamps: bool,
    /// Only `stdout` or `stderr`; None: both.
    #[serde(default)]
    pub stream: Option<crate::cri_log::Stream>,
    /// Tell on channel 5 ([`LogPosition`]) how far the frames so far have come.
    #[serde(default)]
    pub positions: bool,
}

/// A place in a container's log, from which somebody else may go on: the kubelet does, in the same files, when the
/// supervisor ends before a slow client has read all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// Which instance's log.
    pub restart_count: u32,
    /// Inode of the file.
    pub inode: u64,
    /// When the file was last written, nanoseconds since 1970: finds it again once it has been compressed.
    pub modified_nanos: u64,
    /// Uncompressed bytes of the file that are done with.
    pub offset: u64,
    /// The next record begins a line.
    pub at_line_start: bool,
    /// Bytes that `limit_bytes` still allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
}

/// Which streams to join.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachOptions {
    /// Container name.
    pub container: String,
    /// Channel 0 is fed.
    #[serde(default)]
    pub stdin: bool,
    /// Channel 1 is wanted.
    #[serde(default)]
    pub stdout: bool,
    /// Channel 2 is wanted.
    #[serde(default)]
    pub stderr: bool,
    /// The caller believes that the container has a terminal.
    #[serde(default)]
    pub tty: bool,
}

/// Payload of channel 4, with Kubernetes' field names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// First answer line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The request was taken.
    Ok(Answer),
    /// It was not.
    Error(ControlError),
}

/// Content of [`Reply::Ok`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Frames follow.
    Streaming,
    /// Nothing more to say.
    Done,
    /// The pod's state.
    Status(Box<PodState>),
    /// Resource use.
    Stats(PodStats),
    /// One for each probe, in plan order.
    Probes(Vec<ProbeCounts>),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// Class, for the HTTP code.
    pub code: ErrorCode,
    /// Text for people.
    pub message: String,
}

/// Classes of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No such container, port, log.
    NotFound,
    /// The request makes no sense.
    BadRequest,
    /// The container is in the wrong state.
    Conflict,
    /// Contract version too new.
    Version,
    /// Our own fault.
    Internal,
}

/// Payload of channel 3 at the end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamEnd {
    /// All is well (exec: exit code 0).
    Success,
    /// exec: the command's exit code, 128+n for a signal.
    Exit {
        /// Not 0.
        code: i32,
    },
    /// It could not be done or broke off.
    Failed {
        /// Text for people.
        message: String,
    },
}

/// Resource use of a pod at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStats {
    /// When sampled.
    pub at: Option<Timestamp>,
    /// The pod as a whole (the job's cgroup when Slurm gives one, else the sum).
    pub pod: Usage,
    /// By container name.
    pub containers: Vec<ContainerStats>,
    /// Volumes of claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeStats>,
}

/// Use of one volume of a claim, and of the file system that it is on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStats {
    /// The volume's name in the pod.
    pub name: String,
    /// The claim's name.
    pub claim: String,
    /// Bytes and files of the volume itself. None: it is too large to be counted in time.
    pub used: Option<VolumeUse>,
    /// Size of the file system, bytes.
    pub capacity: u64,
    /// Bytes of the file system that are left for the user.
    pub available: u64,
    /// Files and folders that the file system can have.
    pub inodes: u64,
    /// Of these, those that are left.
    pub inodes_free: u64,
}

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, folders and links.
    pub inodes: u64,
}

/// Resource use of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Container name.
    pub name: String,
    /// Start of its current instance.
    pub started_at: Option<Timestamp>,
    /// Use.
    pub usage: Usage,
    /// Bytes of its writable layer.
    #[serde(default)]
    pub rootfs_bytes: u64,
    /// Bytes of its logs.
    #[serde(default)]
    pub log_bytes: u64,
}
